"""``infobert bench``: run the benchmarks, show their tables, and compare two results."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infobert_fast import checks
from infobert_fast.cli.files import write_json

__all__ = ["prepare"]

PLUGIN = "infobert_fast.benchmarks.harness.plugin"
MEASURED = ("median", "q1", "q3", "rounds", "first_call_s", "extra_mib", "roofline")


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Find the suites or read the results; the work is to run or compare them."""
    about = "Run the benchmarks, show their tables, and compare two results."
    parser = argparse.ArgumentParser(prog="infobert bench", allow_abbrev=False, description=about)
    parser.add_argument("suite", nargs="*", help="suites by name; all of them where none is named")
    parser.add_argument("--output", type=Path, help="also write the results here, as JSON")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="show the ratios of two results")
    parser.add_argument("--threshold", type=float, default=0.1, help="a slow-down beyond this share is a regression")
    parser.add_argument("--candidate", action="append", default=[], metavar="NAME=MODULE:FUNCTION", help="time it too")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds a benchmark")
    parser.add_argument("--folder", type=Path, help="where the suites are; a clone's, or those that are installed")
    given = parser.parse_args(list(arguments))
    if given.compare:
        checks.number("threshold", given.threshold, low=0.0)
        old, new = (_read(path) for path in given.compare)
        return lambda: _compare(old, new, given.threshold)
    checks.number("seconds", given.seconds, low=0.0)
    if given.output is not None:
        checks.writable("output", given.output)
    given.folder = given.folder or _suites()
    known = {path.stem.removeprefix("bench_"): path for path in sorted(given.folder.glob("bench_*.py"))}
    if not known:
        raise FileNotFoundError(
            f"`folder` was {given.folder}, which holds no bench_*.py: leave it out for the package's suites"
        )
    for library in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{library}, which runs the suites, is missing: pip install 'infobert-fast[bench]'")
    for name in given.suite:
        checks.choice("suite", name, list(known))
    return lambda: _run([known[name] for name in given.suite or known], given)


def _suites() -> Path:
    """Those of the clone that this runs in, or those that are installed with the package."""
    clone = Path("benchmarks/suites")
    spec = importlib.util.find_spec("infobert_fast.benchmarks.suites")
    if clone.is_dir() or spec is None or spec.origin is None:
        return clone
    return Path(spec.origin).parent


def _run(paths: list[Path], given: argparse.Namespace) -> None:
    """pytest-benchmark in a process of its own; what a red gate refused stands in its output, and ends in an error."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN]
        command += ["-o", "python_files=bench_*.py", "-o", f"pythonpath={given.folder.resolve()}"]
        command += ["--benchmark-quiet", f"--benchmark-json={result}"]
        command += [f"--seconds={given.seconds}", "--tb=short", *(f"--candidate={name}" for name in given.candidate)]
        # A worker of pytest-xdist says so in its environment, and pytest-benchmark then times nothing.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run([*command, *map(str, paths)], env={**environment, "TRITON_INTERPRET": "0"})
        if not result.is_file():
            sys.exit(done.returncode or 1)
        content = json.loads(result.read_text())
    show(content)
    if given.output is not None:
        write_json(given.output, content)
    if done.returncode:
        sys.exit(done.returncode)


def show(content: dict[str, Any]) -> None:
    """A table for each benchmark function; the spread is that between the quartiles, in % of the median."""
    console = Console()
    machine, ceilings = content["machine"], content["ceilings"]
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    copy, fp32, half = (ceilings[f"{name}_per_s"] for name in ("copy_bytes", "fp32_fma", "half_fma"))
    console.print(
        f"measured: copy {copy / 1e9:,.0f} GB/s, fp32 {2e-12 * fp32:,.2f} and bf16 {2e-12 * half:,.2f} Tflop/s"
    )
    for title in dict.fromkeys(_title(row) for row in content["rows"]):
        rows = [row for row in content["rows"] if _title(row) == title]
        varied = [name for name in rows[0] if name not in (*MEASURED, "group", "name")]
        shared = [name for name in varied if len(rows) > 1 and all(row.get(name) == rows[0][name] for row in rows)]
        parameters = [name for name in varied if name not in shared]
        table = Table(*parameters, title=", ".join([title, *(f"{name} {rows[0][name]}" for name in shared)]))
        for column in ("ms", "spread %", "MiB", "% of roofline", "first, s"):
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(
                *(str(row.get(name, "")) for name in parameters),
                f"{1e3 * row['median']:,.3f}",
                f"{100 * (row['q3'] - row['q1']) / row['median']:.0f}",
                f"{row['extra_mib']:,.1f}",
                f"{100 * row['roofline']:.1f}" if "roofline" in row else "",
                f"{row['first_call_s']:.2f}",
            )
        console.print(table)


def _title(row: dict[str, Any]) -> str:
    return f"{row['group']}: {row['name'].split('[')[0].removeprefix('test_').replace('_', ' ')}"


def _compare(old: dict[str, Any], new: dict[str, Any], threshold: float) -> None:
    """Ratios of medians; a slow-down beyond the threshold that the quartiles do not explain ends in an error."""
    for name, value in old["machine"].items():
        if name != "date" and new["machine"].get(name) != value:
            print(f"not the same {name}: {value} and {new['machine'].get(name)}", file=sys.stderr)
    before = {(row["group"], row["name"]): row for row in old["rows"]}
    table = Table("benchmark", title="new beside old")
    for column in ("old, ms", "new, ms", "time ratio", "memory ratio", ""):
        table.add_column(column, justify="right")
    regressions = 0
    for row in new["rows"]:
        if (past := before.pop((row["group"], row["name"]), None)) is None:
            continue
        ratio = row["median"] / past["median"]
        worse = ratio > 1 + threshold and row["q1"] > past["q3"]
        regressions += worse
        table.add_row(
            f"{row['group']}: {row['name'].removeprefix('test_')}",
            f"{1e3 * past['median']:,.3f}",
            f"{1e3 * row['median']:,.3f}",
            f"{ratio:.3f}",
            f"{row['extra_mib'] / past['extra_mib']:.2f}" if past["extra_mib"] else "",
            "SLOWER" if worse else "faster" if ratio < 1 - threshold and row["q3"] < past["q1"] else "",
        )
    Console().print(table)
    for _, name in before:
        print(f"gone: {name}", file=sys.stderr)
    if regressions:
        print(f"{regressions} slower by more than {100 * threshold:.0f} %", file=sys.stderr)
        sys.exit(1)


def _read(path: Path) -> dict[str, Any]:
    """A result file, checked."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not {"machine", "ceilings", "rows"} <= set(content):
        raise ValueError(f"{path} holds no benchmark results; infobert bench --output {path} writes them")
    return content
