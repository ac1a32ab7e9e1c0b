"""The runs behind docs/robustness.md, on the reader's tiny folder: every command of the script, and its tables."""

import os
import subprocess
from pathlib import Path

from infobert_fast.cli import main

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PART = {"OBJECTIVES": "vanilla infobert", "SEEDS": "1", "QA": "infobert"}


def commands(folder):
    """What the script asks of Python now: it only notes what it is asked for."""
    notes = folder / "python"
    notes.write_text('#!/usr/bin/env bash\nshift 2\necho "ASKED $*"\n')
    notes.chmod(0o755)
    script = ["bash", BENCHMARKS / "robustness.sh", "DATA", "ENCODER", "runs"]
    done = subprocess.run(
        script, env={**os.environ, **PART, "PYTHON": str(notes)}, capture_output=True, text=True, check=True
    )
    return [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ASKED ")]


def test_every_run_and_its_tables(reader, monkeypatch, capfd):
    from infobert_fast.benchmarks.report import robustness

    asked = commands(reader)
    assert [words[0] for words in asked] == ["train", "evaluate", "attack", "attack"] * 2 + ["train", "evaluate"]
    for words in asked:
        assert main(words) == 0, f"infobert {' '.join(words)}\n{capfd.readouterr().err}"
    assert commands(reader) == []  # all is there
    content = robustness.collect(Path("runs"))
    page = robustness.render(robustness.PAGE.read_text(encoding="utf-8"), content)
    assert page.count("| set | examples | standard | InfoBERT |") == 1
    assert page.count("| set | examples | InfoBERT |") == 1
    assert page.count("\n| InfoBERT | ") == 2  # both attacks
    assert page.count("| set | questions | InfoBERT |") == 1
