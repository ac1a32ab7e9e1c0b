"""What ranks send each other, counted.

``python benchmarks/model/traffic.py --output benchmarks/results/cpu/ranks.json``

Starts 1, 2 and 4 processes on this machine, over gloo, or over NCCL where there is a GPU for each, and counts every
rank's collectives: of the estimator and the regularisers over all ranks, forward and backward, and of one optimisation
step of a training under each engine. Bytes do not depend on how busy a machine is. Times do, and over one machine's
memory they would say nothing of a network: none is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import infobert_fast
from infobert_fast import InfoNCE, functional
from infobert_fast.benchmarks.model.collectives import Traffic, Watch
from infobert_fast.cli.files import write_json
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck

Row = dict[str, Any]

CONFIGURATIONS = Path(infobert_fast.__file__).parent / "configs" / "deepspeed"
RANKS = (1, 2, 4)
ENGINES = ("ddp", "zero2") if find_spec("deepspeed") else ("ddp",)
ESTIMATORS = [{"pairs": pairs, "width": 768} for pairs in (128, 512, 1024)]
# Sentences of each rank, tokens of each, width; a list gives the ranks different numbers of sentences, in turns.
REGULARISERS = [
    {"batch": batch, "length": length, "width": width}
    for batch, length, width in ((4, 32, 768), (8, 128, 768), (32, 128, 768), (16, 100, 1024), ([6, 2], 32, 768))
]
STEP = {"layers": 2, "width": 64, "vocabulary": 500, "batch": 4, "length": 32, "passes": 3, "accumulation": 1}
STEPS = [
    {**STEP, **changed, "engine": engine}
    for engine in ENGINES
    for changed in (
        {"negatives": "chunk"},
        {"negatives": "all"},
        {"negatives": "all", "passes": 1},
        {"negatives": "all", "accumulation": 2},
        {"negatives": "all", "batch": 8, "length": 64},
        {"negatives": "all", "width": 256, "vocabulary": 5000},
    )
]


def estimator(device: torch.device, pairs: int, width: int) -> Iterator[Row]:
    """InfoNCE, each pair with a global row of its own, all pairs of all ranks as negatives."""
    torch.manual_seed(0)
    local, global_ = torch.randn(2, pairs, width, device=device).unbind()
    critic = InfoNCE(width, width).to(device)
    inputs = [local.requires_grad_(), global_.requires_grad_(), *critic.parameters()]
    counts = [pairs] * dist.get_world_size()
    yield from _there_and_back(lambda: critic(local, global_, pairs_of_ranks=counts), inputs)


def regularisers(device: torch.device, batch: int | list[int], length: int, width: int) -> Iterator[Row]:
    """Both bounds over all ranks, from states; before them the hosts' exchange, as the step makes it."""
    own = batch if isinstance(batch, int) else batch[dist.get_rank() % len(batch)]
    torch.manual_seed(0)
    grad, embedded, last = torch.randn(3, own, length, width, device=device).unbind()
    mask = torch.ones(own, length, dtype=torch.int64, device=device)
    critic = InfoNCE(width, width).to(device)
    inputs = [embedded.requires_grad_(), last.requires_grad_(), *critic.parameters()]
    anchored, lengths = AnchoredFeature(negatives="all"), [length] * own
    with Watch() as watch:
        counts = [int(n) for _, n in functional.exchange(1.0, anchored.count(lengths))]
    yield _counted("exchange", watch.traffic)
    yield from _there_and_back(
        lambda: InformationBottleneck("tokens", partners="all")(embedded, last, mask, lengths), inputs[:1], "bottleneck"
    )
    yield from _there_and_back(
        lambda: anchored(critic, embedded, last[:, 0], grad, mask, lengths, counts), inputs, "anchored"
    )


def _there_and_back(bound: Callable[[], Tensor], inputs: list[Tensor], part: str = "estimator") -> Iterator[Row]:
    dist.barrier()
    with Watch() as watch:
        value = bound()
    yield _counted(f"{part}, forward", watch.traffic)
    with Watch() as watch:
        torch.autograd.grad(value, inputs, allow_unused=True)
    yield _counted(f"{part}, backward", watch.traffic)


def step(device: torch.device, **case: Any) -> Iterator[Row]:
    """The third optimisation step of a training: in the first two DistributedDataParallel arranges its buckets."""
    from transformers import RobertaConfig, RobertaForSequenceClassification, TrainerCallback

    from infobert_fast import InfoBertArguments, InfoBertTrainer

    class Seen(TrainerCallback):  # type: ignore[misc]
        traffic = Traffic()

        def on_step_begin(self, args: Any, state: Any, *rest: Any, **more: Any) -> None:
            watch.restart()

        def on_step_end(self, args: Any, state: Any, *rest: Any, **more: Any) -> None:
            self.traffic = watch.traffic

    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=case["vocabulary"],
            hidden_size=case["width"],
            num_hidden_layers=case["layers"],
            num_attention_heads=2,
            intermediate_size=4 * case["width"],
            max_position_embeddings=case["length"] + 2,
        )
    )
    count = 3 * dist.get_world_size() * case["batch"] * case["accumulation"]
    ids = torch.randint(10, case["vocabulary"], (count, case["length"])).tolist()
    with tempfile.TemporaryDirectory() as folder:
        args = InfoBertArguments(
            folder,
            use_cpu=device.type == "cpu",
            per_device_train_batch_size=case["batch"],
            gradient_accumulation_steps=case["accumulation"],
            adv_steps=case["passes"],
            negatives=case["negatives"],
            ib_partners="all" if case["negatives"] == "all" else "batch",
            deepspeed=None if case["engine"] == "ddp" else str(CONFIGURATIONS / f"{case['engine']}.json"),
            num_train_epochs=1,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        seen = Seen()
        examples = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": 0} for row in ids]
        trainer = InfoBertTrainer(model, args, train_dataset=examples, data_collator=_stack, callbacks=[seen])
        with Watch() as watch:
            trainer.train()
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    buffers = sum(buffer.nbytes for buffer in trainer.model.buffers())
    yield {"parameters": weights, "buffers": buffers, **_counted("step", seen.traffic)}


def _stack(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


def _counted(phase: str, traffic: Traffic) -> Row:
    kinds = {kind: {"calls": sent.calls, "payload": sent.payload} for kind, sent in sorted(traffic.kinds.items())}
    return {"phase": phase, "collectives": kinds, "received": traffic.received, "written": traffic.written}


KINDS: dict[str, tuple[Callable[..., Iterator[Row]], list[dict[str, Any]]]] = {
    "estimator": (estimator, ESTIMATORS),
    "regularisers": (regularisers, REGULARISERS),
    "step": (step, STEPS),
}


def work(cases: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """One rank of those that torchrun has started: every case, its rows into a file."""
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = torch.cuda.device_count() >= ranks
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    rows = [
        {"kind": kind, **case, "ranks": ranks, "backend": dist.get_backend(), **row}
        for kind in cases
        for case in cases[kind]
        for row in KINDS[kind][0](device, **case)
    ]
    (folder / f"{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def run(ranks: int, cases: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """The rows of all cases on so many processes; ``written`` lists what each of them wrote.

    Raises:
        RuntimeError: where ranks did not take part in the same collectives.
    """
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command = [sys.executable, *launch, __file__, "--work", json.dumps(cases), folder]
        subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ}, stdout=sys.stderr)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    rows = []
    for same in zip(*found, strict=True):
        if any(row["collectives"] != same[0]["collectives"] for row in same):
            raise RuntimeError(f"ranks took part in different collectives: {same}")
        rows.append({**same[0], "written": [row["written"] for row in same]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the rows here, as JSON")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="how many processes; several runs")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS), help="what is counted")
    parser.add_argument("--work", nargs=2, metavar=("CASES", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(json.loads(given.work[0]), Path(given.work[1]))
    rows = [row for ranks in given.ranks for row in run(ranks, {kind: KINDS[kind][1] for kind in given.kind})]
    for row in rows:
        facts = {name: value for name, value in row.items() if name not in ("collectives", "received", "written")}
        print(*facts.values(), row["collectives"], f"received {row['received']:,.0f}, written {row['written']}")
    if given.output is not None:
        libraries = ("torch", "transformers", "accelerate", "deepspeed")
        versions = {name: version(name) for name in libraries if find_spec(name)}
        write_json(given.output, {"versions": versions, "traffic": rows})


if __name__ == "__main__":
    main()
