"""Two CPU ranks against one process with both ranks' data, under DistributedDataParallel and DeepSpeed ZeRO-2."""

import os
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")
ZERO2 = str(files("infobert_fast") / "configs" / "deepspeed" / "zero2.json")
ENGINES = {"ddp": "DistributedDataParallel", "zero2": "DeepSpeedEngine"}


def launch(command):
    """Run to the end, in a process group of its own, so that a rank that hangs does not outlive the test."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"the ranks did not finish in 200 s:\n{output[-6000:]}")
    assert process.returncode == 0, output[-6000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """``results(engine)[scenario]``: what each process wrote, launched when first asked for."""
    done = {}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def of(engine):
        if engine not in done:
            out = tmp_path_factory.mktemp(engine)
            arguments = [str(SCRIPT), str(out), "2"]
            if engine == "zero2":
                arguments += ["--deepspeed", ZERO2]
            launch(arguments if engine == "one" else [*torchrun, *arguments])
            done[engine] = {}
            for path in sorted(out.glob("*.pt")):
                done[engine].setdefault(path.stem[:-2], []).append(torch.load(path, weights_only=True))
        return done[engine]

    return of


def distance(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "scenario", ["task", "short", "terms", "version6", "empty", "smart", "tokens", "club", "autocast"]
)
def test_both_ranks_end_with_the_same_parameters(results, engine, scenario):
    first, second = results(engine)[scenario]
    assert first["engine"] == second["engine"] == ENGINES[engine]
    assert distance(first["before"], second["before"]) == 0
    assert distance(first["after"], second["after"]) == 0
    assert distance(first["before"], first["after"]) > 1e-3
    assert all(value.isfinite().all() for value in first["after"].values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("scenario", "steps"),
    [
        pytest.param("task", 1, id="task gradient is the joint batch's"),
        pytest.param("short", 2, id="a shorter last accumulation group"),
        pytest.param("terms", 1, id="all terms, three passes"),
        pytest.param("empty", 2, id="no anchor on one rank"),
        pytest.param("tokens", 4, id="batches of different numbers of sentences"),
        pytest.param("smart", 1, id="two predictions by one backward"),
        pytest.param("all", 1, id="both regularisers over all ranks"),
    ],
)
def test_unclipped_gradients_are_those_of_one_process(results, engine, scenario, steps):
    """Entry by entry; SGD with rate 1, so that parameters moved by exactly the gradients."""
    (one,), (rank, _) = results("one")[scenario], results(engine)[scenario]
    assert one["steps"] == rank["steps"] == steps
    assert max(float(value.abs().max()) for value in one["movement"].values()) > 0.1
    assert distance(rank["movement"], one["movement"]) < 1e-6


def test_ranks_held_different_numbers_of_sentences(results):
    """Or the comparison above shows nothing."""
    first, second = results("ddp")["tokens"]
    assert first["sentences"] != second["sentences"]
    assert len(set(first["sentences"] + second["sentences"])) > 2
    (one,) = results("one")["tokens"]
    assert sorted(one["sentences"]) == sorted(first["sentences"] + second["sentences"])


@pytest.mark.parametrize("scenario", ["task", "short", "terms", "version6", "empty", "smart", "tokens", "all", "club"])
def test_gradients_are_reduced_once_an_optimisation_step(results, scenario):
    """K passes of several micro-batches: each parameter goes over the wire once."""
    for rank in results("ddp")[scenario]:
        assert rank["reduced_at"] == [(step + 1) * rank["parameters"] for step in range(rank["steps"])]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_learned_bound_stays_equal_over_ranks(results, engine):
    first, second = results(engine)["club"]
    assert first["club"]
    assert distance(first["club"], second["club"]) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_terms_are_logged_over_both_ranks(results, engine):
    """Means and ranges are of all micro-batches: those one process saw one after the other."""
    (one,), ranks = results("one")["terms"], results(engine)["terms"]
    for rank in ranks[:1]:  # the second rank's log is kept too, and is the same
        for line, expected in zip(rank["logs"], one["logs"], strict=True):
            for name in ("loss", *(key for key in expected if key.startswith(("task_", "ib_", "afr_")))):
                assert line[name] == pytest.approx(expected[name], rel=1e-4), name
    assert ranks[0]["logs"] == ranks[1]["logs"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_encoder_works_in_bfloat16_and_the_perturbation_in_float32(results, engine):
    for rank in results(engine)["autocast"]:
        assert "torch.bfloat16" in rank["dtypes"]
        assert rank["inputs"] == ["torch.float32"]


def test_deepspeed_settings_that_lose_the_perturbation_are_refused(results):
    for messages in results("zero2")["refused"]:
        assert "`bf16` is enabled, in the arguments or the DeepSpeed configuration" in messages["bf16"]
        assert '"torch_autocast": {"enabled": true, "dtype": "bfloat16"}' in messages["bf16"]
        assert "asks for ZeRO stage 3" in messages["zero3"]
        assert "use stage 2 or lower" in messages["zero3"]
