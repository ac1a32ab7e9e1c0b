"""CPU ranks against one process with all ranks' data, under DDP, FSDP2 and the stages of DeepSpeed's ZeRO."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

SCRIPT = Path(__file__).with_name("ranks.py")
ENGINES = ["ddp", "fsdp2", "fsdp2_keep", "zero1", "zero2", "zero3", "zero2_offload"]
THOROUGH = ["ddp", "fsdp2", "zero2", "zero3"]  # the others run through the lines of one of these
WRAPPED = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPBertForSequenceClassification"}
GRID = [f"v{v}K{k}a{a}" for v, k, a in product((-1, 3, 6), (1, 3), (1, 2))]
SUITE = dict.fromkeys(("fsdp2_keep", "zero1", "zero2_offload"), GRID[-3:])  # as in the script
SUITE |= dict.fromkeys(("fsdp2", "zero3"), GRID[1::2])
CASES = [(engine, case) for engine in ENGINES for case in SUITE.get(engine, GRID)]


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
        output, _ = process.communicate(timeout=1200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"the ranks did not finish in time:\n{output[-6000:]}")
    assert process.returncode == 0, output[-6000:]


class Written:
    """What the processes of a launch wrote: ``written(engine, scenario)`` has one entry a rank."""

    def __init__(self, folder):
        self.folder = folder
        self.read = functools.cache(lambda path: torch.load(path, weights_only=True))

    def __call__(self, engine, scenario):
        return [self.read(path) for path in sorted(self.folder.glob(f"{engine}-{scenario}-*.pt"))]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """``ran(engines, ranks, *options)``: one process for the engine "one" and so many for others; launched once."""

    @functools.cache
    def run(engines, ranks, *options):
        out = tmp_path_factory.mktemp("ranks")
        command = [str(SCRIPT), str(out), str(ranks), *engines, *options]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        launch(command if engines == ("one",) else [*torchrun, *command])
        return Written(out)

    return run


@pytest.fixture
def one(ran):
    return lambda scenario: ran(("one",), 2)("one", scenario)[0]


@pytest.fixture
def results(ran):
    return ran(tuple(ENGINES), 2)


def distance(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def norm(tensors):
    return float(sum(tensor.double().square().sum() for tensor in tensors) ** 0.5)


def check_case(one, every):
    assert one["steps"] == every[0]["steps"] == 1
    assert max(float(value.abs().max()) for value in one["movement"].values()) > 0.1
    for rank in every:
        assert distance(rank["before"], one["before"]) == 0
        assert distance(rank["movement"], one["movement"]) < 1e-6


@pytest.mark.parametrize(("engine", "case"), CASES)
def test_gradients_are_those_of_one_process(one, results, engine, case):
    """Entry by entry and unclipped, versions x passes x accumulation: SGD with rate 1 moved the weights by them."""
    every = results(engine, case)
    assert len(every) == 2
    assert every[0]["engine"] == WRAPPED.get(engine.split("_")[0], "DeepSpeedEngine")
    check_case(one(case), every)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("engine", [*ENGINES, "zero0", "zero3_offload"])
def test_the_whole_grid(ran, engine, ranks):
    for case in GRID:
        every = ran((engine,), ranks, "--grid")(engine, case)
        assert len(every) == ranks
        check_case(ran(("one",), ranks, "--grid")("one", case)[0], every)


@pytest.mark.slow
def test_two_hosts(ran, tmp_path):
    """In network namespaces of their own, under ZeRO-2."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux, root and iproute2")
    script = SCRIPT.with_name("two_hosts.sh")
    subprocess.run(["bash", str(script), str(tmp_path)], check=True, env={**os.environ, "PYTHON": sys.executable})
    for case in GRID:
        check_case(ran(("one",), 2, "--grid")("one", case)[0], Written(tmp_path)("zero2", case))


@pytest.mark.parametrize("engine", THOROUGH)
@pytest.mark.parametrize(
    ("scenario", "steps"),
    [
        pytest.param("short", 2, id="a shorter last accumulation group"),
        pytest.param("empty", 1, id="no anchor on one rank"),
        pytest.param("smart", 1, id="two predictions by one backward"),
        pytest.param("tokens", 4, id="batches of different numbers of sentences"),
        pytest.param("all", 1, id="both regularisers over all ranks"),
        pytest.param("packed", 1, id="packed rows"),
        pytest.param("club", 3, id="learned bound without beta"),
    ],
)
def test_more_gradients_are_those_of_one_process(one, results, engine, scenario, steps):
    single, ranks = one(scenario), results(engine, scenario)
    assert single["steps"] == ranks[0]["steps"] == steps
    for rank in ranks:
        assert distance(rank["movement"], single["movement"]) < 1e-6 * steps  # each step moves the next one's gradient


@pytest.mark.parametrize("engine", ENGINES)
def test_recomputed_activations_give_the_same_gradients(one, results, engine):
    for rank in results(engine, "checkpointing"):
        assert distance(rank["movement"], one("checkpointing")["movement"]) < 1e-6


def test_recomputation_repeats_dropout(results):
    """In both traversals of a graph under FSDP2."""
    for drawn, recomputed in zip(results("fsdp2", "dropout"), results("fsdp2", "recomputed"), strict=True):
        assert distance(drawn["movement"], recomputed["movement"]) < 1e-6


@pytest.mark.parametrize(("scenario", "times"), [("each", 6), ("file", 1)])
def test_fsdp2_asked_for_otherwise(one, results, scenario, times):
    """With a reduction in each of the six passes; by an accelerate file."""
    for rank in results("fsdp2", scenario):
        assert rank["engine"] == WRAPPED["fsdp2"]
        assert distance(rank["movement"], one("v6K3a2")["movement"]) < 1e-6
        assert rank["reduced"] == [pytest.approx(times * rank["parameters"], rel=2e-2)]


@pytest.mark.parametrize(
    ("engine", "scenario"),
    [*((engine, "twenty") for engine in ENGINES), *product(("ddp", "zero2"), ("club0", "club1"))],
)
def test_replicas_are_identical_after_twenty_steps(results, engine, scenario):
    """Of AdamW, with dropout and clipping; the learned bound's weights too."""
    first, second = results(engine, scenario)
    assert first["steps"] == 20
    assert distance(first["before"], second["before"]) == 0
    assert distance(first["after"], second["after"]) == 0
    assert distance(first["before"], first["after"]) > 1e-2
    assert all(value.isfinite().all() for value in first["after"].values())
    assert bool(first["club"]) is scenario.startswith("club")
    assert all(torch.equal(first["club"][name], second["club"][name]) for name in first["club"])


@pytest.mark.parametrize("engine", THOROUGH)
def test_the_learned_bound_learns_from_the_joint_batch(one, results, engine):
    """Six Adam steps of its own, on as many tokens a rank: its weights are those of one process with both batches."""
    single, (rank, _) = one("club"), results(engine, "club")
    assert single["club"]
    assert distance(rank["club"], single["club"]) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_counts_the_critic(one, results, engine):
    """SGD with rate 1 moves all weights together by the clipping norm, of which the critic has its share."""
    movement = results(engine, "clipped")[0]["movement"]
    assert distance(movement, one("clipped")["movement"]) < 1e-6
    assert norm(movement.values()) == pytest.approx(0.1, rel=1e-4)
    assert norm(value for name, value in movement.items() if "mi_estimator" in name) > 0.02


def test_ranks_held_different_numbers_of_sentences(one, results):
    """Or the comparison above shows nothing."""
    first, second = results("ddp", "tokens")
    assert first["sentences"] != second["sentences"]
    assert len(set(first["sentences"] + second["sentences"])) > 2
    assert sorted(one("tokens")["sentences"]) == sorted(first["sentences"] + second["sentences"])


@pytest.mark.parametrize(("engine", "case"), CASES)
def test_how_often_gradients_go_over_the_wire(results, engine, case):
    """Once an optimisation step under DDP, FSDP2 and ZeRO-1; stages 2 and 3 keep their share of a gradient alone, and
    so send one a pass.
    """
    passes, accumulation = map(int, case.split("K")[1].split("a"))
    times = 1 if engine in ("ddp", "fsdp2", "fsdp2_keep", "zero1") else passes * accumulation
    for rank in results(engine, case):
        # ZeRO and FSDP2 pad what it sends to a multiple of the ranks
        assert rank["reduced"] == [pytest.approx(times * rank["parameters"], rel=3e-2)]


@pytest.mark.parametrize("engine", ENGINES)
def test_units_of_work(results, engine):
    """Six passes with anchors: a forward, an input gradient and a backward, 4 units; under ZeRO-3 two forwards."""
    for rank in results(engine, "v6K3a2"):
        forwards, traversals = (count - 2 for count in rank["work"])  # the first look takes two of each
        assert forwards == (12 if engine == "zero3" else 6)
        assert traversals == 12


@pytest.mark.parametrize("engine", ENGINES)
def test_terms_are_logged_over_both_ranks(one, results, engine):
    """Means and ranges are of all micro-batches: those one process saw one after the other."""
    ranks = results(engine, "v6K3a2")
    for line, expected in zip(ranks[0]["logs"], one("v6K3a2")["logs"], strict=True):
        for name in ("loss", *(key for key in expected if key.startswith(("task_", "ib_", "afr_")))):
            assert line[name] == pytest.approx(expected[name], rel=1e-4), name
    # The second rank's log is kept too.
    terms = [[{k: v for k, v in line.items() if "_per_" not in k} for line in rank["logs"]] for rank in ranks]
    assert terms[0] == terms[1]


@pytest.mark.parametrize(
    ("engine", "dtype"), [*product(ENGINES, ["bfloat16"]), ("zero2", "float16"), ("zero3", "float16")]
)
def test_the_encoder_works_in_half_precision_and_the_perturbation_in_float32(one, results, engine, dtype):
    ranks = results(engine, dtype)
    for rank in ranks:
        assert f"torch.{dtype}" in rank["dtypes"]
        assert rank["inputs"] == ["torch.float32"]
        assert all(value.dtype == torch.float32 for value in rank["after"].values())
    assert distance(ranks[0]["after"], ranks[1]["after"]) == 0
    whole, movement = one("checkpointing")["movement"], ranks[0]["movement"]  # the same step in float32
    error = norm(movement[name] - whole[name] for name in whole) / norm(whole.values())
    assert 1e-5 < error < (2e-2 if dtype == "bfloat16" else 2e-3)
    if dtype == "bfloat16":  # the package's files send gradients in float32, as DDP does
        assert distance(movement, results("ddp", dtype)[0]["movement"]) < 1e-6


@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_a_checkpoint_goes_on_and_the_model_opens_without_us(results, engine):
    whole, resumed = results(engine, "whole")[0], results(engine, "resumed")[0]
    assert whole["steps"] == resumed["steps"] == 4
    assert distance(whole["after"], resumed["after"]) == 0
    folder = results.folder / f"{engine}-model"
    saved = load_file(folder / "model.safetensors")
    assert distance(saved, resumed["after"]) == 0
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert report["unexpected_keys"]
    assert all(key.startswith("mi_estimator.") for key in report["unexpected_keys"])
    assert not report["missing_keys"]
    assert distance(model.state_dict(), {k: v for k, v in saved.items() if "mi_estimator" not in k}) == 0


def test_deepspeed_settings_that_train_something_else_are_refused(results):
    for rank in (0, 1):
        messages = torch.load(results.folder / f"zero2-refused-{rank}.pt", weights_only=True)
        for half in ("bf16", "fp16"):
            assert f"`{half}` is enabled, in the arguments or the DeepSpeed configuration" in messages[half]
            assert '"torch_autocast": {"enabled": true, "dtype": "bfloat16"}' in messages[half]
        assert "max_grad_norm to 0" in messages["clipped"]


@pytest.mark.parametrize("engine", THOROUGH)
def test_a_loss_that_is_nan_on_one_rank_stops_all_with_the_same_words(results, engine):
    first, second = results(engine, "stop")
    assert first["message"] == second["message"]
    cause = "step 1: task_loss not finite (rank 1, micro-batch 0: task_loss nan, training examples 20, 21, 22, 23)."
    assert first["message"].startswith(cause)
    for rank in (first, second):
        assert len(rank["after"]) == 1
        assert distance(rank["end"], rank["after"][0]) == 0  # the step was not taken


@pytest.mark.parametrize("engine", THOROUGH)
def test_a_loss_that_is_nan_on_one_rank_is_skipped_by_all(results, engine):
    first, second = results(engine, "skip")
    for rank in (first, second):
        assert rank["skipped"] == 1
        assert len(rank["after"]) == 3
        assert distance(rank["after"][1], rank["after"][0]) == 0
        assert distance(rank["after"][2], rank["after"][1]) > 1e-3
        assert all(value.isfinite().all() for value in rank["end"].values())
    assert distance(first["end"], second["end"]) == 0
