"""benchmarks/gpu.sh with a Python that only notes what it is asked for: order, restarts, and no timing while red."""

import ast
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.sh"
TESTS = ["kernels", "training", "tests"]  # the last without the others
FAKE = """#!/usr/bin/env bash
case "$*" in
*get_device_name*) echo "NVIDIA H100 80GB HBM3" ;;
*"pip install"* | *"pip show"*) ;;
*"pytest -m gpu"*)
    group=${5#tests/}
    [[ $group == "${RED:-}" ]] && exit 1
    [[ $group == "${SLOW:-}" ]] && exit 124
    echo "$group" >>"$NOTES" ;;
*small_cases*) echo sanitize >>"$NOTES" ;;
*"infobert_fast.cli bench"*)
    suite=$4 output=${!#}
    echo "$suite" >>"$NOTES"
    [[ $suite == "${BROKEN:-}" ]] && exit 1
    echo '{"machine": {"device": "H100"}, "ceilings": {}, "rows": [{"group": "'"$suite"'", "name": "test_x"}]}' \\
        >"$output" ;;
-\\ *json) exec "$REAL" "$@" ;; # the suites' results put together
-\\ *) cat >/dev/null ;;
*) exit 99 ;;
esac
"""


@pytest.fixture
def gpu(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    notes = tmp_path / "notes"

    def run(part, **environment):
        notes.write_text("")
        environment = {**os.environ, "PYTHON": str(fake), "NOTES": str(notes), "REAL": sys.executable, **environment}
        done = subprocess.run(["bash", SCRIPT, part, tmp_path / "out"], env=environment, capture_output=True, text=True)
        return done, notes.read_text().split()

    return run


def test_parts_that_are_finished_are_skipped(gpu, tmp_path):
    done, asked = gpu("all", BROKEN="step")
    assert done.returncode == 0, done.stderr
    suites = ["info_nce", "path", "step", "regularizers", "separable", "dropin", "evaluation", "data"]
    assert [name for name in asked if name != "sanitize"] == [*TESTS, *suites]
    assert "call it again" in done.stdout
    done, asked = gpu("all")
    assert asked == ["step"]
    assert "call it again" not in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "device.txt", "tests.txt", "sanitizer.txt", "bench.json",
    }  # fmt: skip
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]
    assert sorted(row["group"] for row in rows) == sorted(suites)


def test_nothing_is_timed_while_a_test_is_red(gpu):
    done, asked = gpu("all", RED="training")
    assert done.returncode == 1
    assert asked == ["kernels"]
    assert "nothing is timed" in done.stderr
    assert gpu("bench")[0].returncode == 1  # nor without having been tested
    assert gpu("bench")[1] == []


def test_tests_that_were_cut_off_are_all_that_is_repeated(gpu):
    done, asked = gpu("tests", SLOW="training")
    assert done.returncode == 1
    assert asked == ["kernels"]
    assert "call it again" in done.stderr
    assert gpu("tests")[1] == ["training", "tests"]
    assert gpu("tests")[1] == []


def test_the_budget_leaves_suites_for_the_next_call(gpu):
    done, asked = gpu("all", BUDGET="0")
    assert [name for name in asked if name != "sanitize"] == TESTS
    assert "left for the next call" in done.stdout


def test_every_suite_is_named():
    suites = {path.stem.removeprefix("bench_") for path in SCRIPT.parent.glob("suites/bench_*.py")}
    (line,) = [line for line in SCRIPT.read_text().splitlines() if "for suite in" in line]
    assert set(line.split(" in ")[1].split(";")[0].split()) == suites


def closure(names):
    """What is installed of the distributions and of whatever they require without being asked to."""
    found, waiting = set(), set(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        try:
            requirements = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform or Python
        found.add(name)
        needed = (r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""}))
        waiting |= {canonicalize_name(name) for name in needed} - found
    return found


def test_the_wheels_are_all_that_a_machine_with_torch_and_transformers_lacks():
    """Imports at the head of any test or suite count: pytest -m gpu reads every file."""
    command = re.search(r"constraints\.txt (.+?)\nset -", SCRIPT.read_text(), re.S)[1]
    wheels = {canonicalize_name(name) for name in command.replace("#", " ").replace("\\", " ").split()}
    present = closure(["torch", "triton", "transformers", "setuptools"]) | wheels | {"infobert-fast"}
    assert closure(wheels) <= present
    owners = importlib.metadata.packages_distributions()
    missing = set()
    root = SCRIPT.parents[1]
    read = ("tests/**/*.py", "benchmarks/suites/*.py", "benchmarks/harness/*.py")
    for path in itertools.chain.from_iterable(map(root.glob, read)):
        if path.parent.name == "sanitize":
            continue  # they are for a CPU
        for statement in ast.parse(path.read_text()).body:
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module] if isinstance(statement, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
                if name in owners and not {canonicalize_name(owner) for owner in owners[name]} & present:
                    missing.add((name, path.name))
    assert not missing
