"""Bounds over all ranks are those of one process with the joint batch: values, and gradients averaged over ranks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infobert_fast import functional

SCRIPT = Path(__file__).with_name("regularizer_ranks.py")
CASES = ["even", "uneven", "no anchor on a rank", "anchors on one rank", "one anchor", "no anchor"]
BOUNDS = ["afr", "tokens", "sentence"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """``results(world)[case]``, launched when first asked for; what several worlds share runs once a world."""
    out, done = tmp_path_factory.mktemp("ranks"), {}

    def of(world):
        if world not in done:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(out), str(world)],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"{world} ranks did not finish:\n{process.communicate()[0][-4000:]}")
            assert process.returncode == 0, output[-4000:]
            for path in out.glob("*.pt"):
                done[int(path.stem) if path.stem.isdigit() else path.stem] = torch.load(path, weights_only=True)
        return done[world]

    return of


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_joint_batchs(results, case, world):
    """Of hidden states and all critic weights, however the sentences are split."""
    joint, split = results(1)[case], results(world)[case]
    for name in BOUNDS:
        (expected,) = joint["values"][name]
        values = split["values"][name]
        assert len(values) == world
        assert len(set(values)) == 1  # the same bits on every rank
        assert values[0] == pytest.approx(expected, abs=1e-9)
        assert len(split["gradients"][name]) == len(joint["gradients"][name])
        for actual, wanted in zip(split["gradients"][name], joint["gradients"][name], strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_through_distributed_data_parallel(results, case, world):
    joint, split = results(1)[case]["ddp"], results(world)[case]["ddp"]
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in joint)
    for actual, wanted in zip(split, joint, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_through_the_step(results, case, world):
    """Ranks with different numbers of sentences weigh their task losses differently, and the joint terms alike."""
    joint, split = results(1)[case]["step"], results(world)[case]["step"]
    assert sum(split["loss"]) / world == pytest.approx(joint["loss"][0], abs=1e-6)  # the terms are kept in float32
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in joint["gradients"])
    for actual, wanted in zip(split["gradients"], joint["gradients"], strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-9, rtol=0)


def test_the_cases_are_what_they_say(results):
    joint = results(1)
    assert joint["even"]["values"] == joint["uneven"]["values"]
    assert abs(joint["even"]["values"]["afr"][0]) > 1e-3
    assert all(bool(gradient.any()) for gradient in joint["even"]["gradients"]["afr"])
    assert joint["one anchor"]["values"]["afr"] == joint["no anchor"]["values"]["afr"] == [0.0]


def test_alone_all_ranks_are_the_batch(results):
    joint, alone = results(1), results("alone")
    for case in CASES:
        assert alone[case]["values"] == joint[case]["values"]


def test_refusals():
    rows = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="no process group is initialised"):
        functional.gather_rows(rows, [3])
    with pytest.raises(RuntimeError, match="no process group is initialised"):
        functional.club_over_ranks(rows)
    critic = (torch.randn(5, 8), torch.randn(5), torch.randn(5), torch.randn(1))
    for change in ({"chunk_size": 2}, {"implementation": "reference"}):
        with pytest.raises(ValueError, match="know one rank: leave `pairs_of_ranks` out"):
            functional.info_nce(rows, rows, *critic, pairs_of_ranks=[3], **change)
    with pytest.raises(ValueError, match="`pairs_of_ranks` is zero for every rank"):
        functional.info_nce(rows, rows, *critic, pairs_of_ranks=[0, 0])
