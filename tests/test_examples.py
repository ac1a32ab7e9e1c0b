"""The examples beside the demo, as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


def test_the_swap_changes_the_time_and_not_the_losses():
    printed = run(EXAMPLES / "swap_in.py", "--pairs", "128", "--dim", "128", "--steps", "3")
    assert float(re.search(r"differ by at most (\S+) over 4 steps", printed)[1]) < 1e-5
    # On any machine: the literal form makes 128 x 128 x 256 numbers several times over.
    assert float(re.search(r"ratio (\S+)", printed)[1]) > 2


@pytest.mark.parametrize(
    "engine", ["fsdp2", "zero2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "zero3"))]
)
def test_the_loop_trains_on_two_ranks(tmp_path, engine):
    from transformers import AutoModelForSequenceClassification

    script = EXAMPLES / "own_loop.py"
    assert len(script.read_text().splitlines()) <= 180
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = ["--engine", engine, "--steps", 40, "--accumulation", 2, "--output", tmp_path / "model"]
    printed = run(*torchrun, script, *options)
    bounds = [float(value) for value in re.findall(r"ib_upper_bound ([\d.]+)", printed)]
    assert len(bounds) == 2  # rank 0 alone prints, every 20 steps
    assert 0 < bounds[1] < bounds[0]
    assert len(re.findall(r"test_\w+: [\d.]+ %", printed)) == 2
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert {key.split(".")[0] for key in report["unexpected_keys"]} == {"mi_estimator"}
