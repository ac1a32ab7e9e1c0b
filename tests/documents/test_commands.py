"""Every command in the documentation, typed as it is printed into a folder that has what it names (`reader`)."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infobert_fast.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])

# Appended to a command, so that it runs on any machine and takes no time.
APPENDED = {"train": ("--use_cpu", "True"), "bench": ("--seconds", "0.01")}
# What is not executed as it is printed, by a word that tells it: why, and the tests that run the like of it. Behind a
# launcher our own part of the command is executed, by one process.
ELSEWHERE = {
    "torchrun": ("starts ranks, on several nodes", "tests/training/test_ranks.py"),
    "deepspeed": ("starts ranks, on several nodes", "tests/training/test_ranks.py"),
    "calibrate": ("needs a model that has left chance", "tests/test_cli_calibrate.py"),
    "tune": ("times the kernels of a GPU", "tests/test_cli_tune.py"),
    "pip": ("makes an environment", "tests/packaging/test_installs.py"),
    "make": ("makes an environment; `make test` runs this", "tests/test_demo.py"),
    ".ci/run": ("runs this", "tests/documents/test_commands.py"),
    "benchmarks/gpu.sh": ("needs a GPU", "tests/benchmarks/test_gpu_script.py"),
    "benchmarks/robustness.sh": ("takes hours", "tests/documents/test_robustness.py"),
    "benchmarks/report/robustness.py": ("writes a page of the repository", "tests/documents/test_robustness.py"),
    "benchmarks/model/traffic.py": ("writes results of the repository", "tests/benchmarks/test_traffic.py"),
    "benchmarks/report/pages.py": ("writes pages of the repository", "tests/benchmarks/test_report.py"),
    "tests/training/kill.py": ("kills a training for minutes", "tests/training/test_faults.py"),
}
# The shell itself reads the pages. It finds no program, and says which it was asked for and with what arguments.
ASKED = 'command_not_found_handle() { printf "%s\\0" "$@"; printf "\\n\\0"; }\n'


def commands(page):
    """The words of each command in a page's indented blocks: lines joined, comments off, variables and loops gone."""
    for block in re.findall(r"(?:^ {4}.*\n)+", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if not re.search(r"infobert|^ {4}(?:bash|make|pip|python) ", block, flags=re.MULTILINE):
            continue  # a formula, a file, an output
        script = ASKED + re.sub(r"(?<=\w)\|(?=\w)", r"\\|", block)  # a|b is a choice here, and no pipe
        shell = [shutil.which("bash"), "--restricted", "-euc", script]
        done = subprocess.run(shell, env={"PATH": "/nowhere"}, capture_output=True, text=True)
        assert done.returncode == 0, f"{page.name}: {done.stderr}"
        for command in done.stdout.split("\n\0")[:-1]:
            choices = [[word] if " " in word else word.split("|") for word in command.split("\0")[:-1]]
            yield from itertools.product(*choices)


PRINTED = list(dict.fromkeys(words for page in DOCUMENTS for words in commands(page)))
LAUNCHED = [words for words in PRINTED if words[0] in ("torchrun", "deepspeed")]
OURS = list(
    dict.fromkeys(
        words[words.index("infobert_fast.cli" if words in LAUNCHED else "infobert") + 1 :]
        for words in PRINTED
        if words in LAUNCHED or words[0] == "infobert"
    )
)
ENGINES = [words for words in OURS if {"--deepspeed", "--fsdp_config"} & {*words}]
HERE = [words for words in OURS if words not in ENGINES and words[0] not in ELSEWHERE]
OTHERS = [words for words in PRINTED if words not in LAUNCHED and words[0] != "infobert"]


def written():
    return {(path, path.stat().st_mtime_ns) for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", HERE, ids=" ".join)
def test_commands_run(words, reader, capfd):
    typed = [*words, *APPENDED.get(words[0], ())]
    before = written()
    for _ in range(1 + ("auto" in words)):  # a second time, from what the first has kept
        assert main(typed) == 0, (
            f"infobert {' '.join(typed)}\n{capfd.readouterr().err}\n"
            "If this names a model, a dataset or a file of the reader's, conftest.py puts it into the reader's folder."
        )
    new = {path for path, _ in written() - before}
    for option, name in itertools.pairwise(words):
        if option in ("--output", "--output_dir", "--predictions"):
            assert any(Path(name) in (path, *path.parents) for path in new), f"{option} {name} holds nothing new"
    if "auto" in words:
        assert any(path.parent.name.startswith("checkpoint-") for path in new), "no checkpoint to go on from"


@pytest.mark.parametrize("words", ENGINES, ids=" ".join)
def test_engines_run(words, reader):
    """In a process of its own, by torch's launcher as the only rank: DeepSpeed's settings stay with a process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(reader / "cache")
    done = subprocess.run(
        [*launcher, "-m", "infobert_fast.cli", *words, *APPENDED[words[0]]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "--fsdp_config" in words:  # which nothing shards on a CPU
        assert done.returncode != 0
        assert re.search("^infobert train: .*fsdp", done.stderr, re.MULTILINE), done.stderr[-6000:]
    else:
        assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("words", LAUNCHED, ids=" ".join)
def test_launchers_take_their_options(words):
    if words[0] == "torchrun":
        from torch.distributed.run import parse_args

        given = parse_args(words[1:])
        script, rest = given.training_script, given.training_script_args
    else:
        from deepspeed.launcher.runner import parse_args

        given = parse_args(words[1:])
        script, rest = given.user_script, given.user_args
    assert (given.module, script) == (True, "infobert_fast.cli")
    assert tuple(rest) in OURS


def test_tuning_gets_as_far_as_the_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words in OURS:
        if words[0] == "tune":
            assert main(words) == 2
            assert "there is no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_targets_exist_and_scripts_run(words):
    program, *rest = words
    if program == "make":
        assert re.search(rf"^{re.escape(rest[0])}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program in ("bash", "python"):
        assert (ROOT / rest[0]).is_file()
    if not {program, *rest} & set(ELSEWHERE):
        assert program == "python", "no test knows the program: execute it, or say in ELSEWHERE which test does"
        subprocess.run([sys.executable, *rest], cwd=ROOT, check=True, timeout=600)


@pytest.mark.parametrize("word", ELSEWHERE)
def test_what_runs_elsewhere_is_printed_and_tested(word):
    assert any(word in words for words in PRINTED), "no page prints this any more: take it out of ELSEWHERE"
    assert (ROOT / ELSEWHERE[word][1]).is_file()


def test_every_command_is_documented():
    assert {words[0] for words in OURS} == set(COMMANDS)
