"""Where a training step's time, operators and memory go, with the regularisers and without.

``python benchmarks/suites/profile_step.py`` runs the trainer's step on a RoBERTa under ``torch.profiler``: InfoBERT
(version 6) and, with all else equal, FreeLB alone (version -1). It prints each part's share of the time (of the
device where there is one), how many operators and kernel launches a pass takes, nested operators included, and the
memory that a step adds. ``--output`` writes the same as JSON, ``--trace`` timelines for a browser's tracing page.

Parts are labelled here and not in the step, so that it pays nothing for labels that nobody reads. Under the profiler an
operator costs more than otherwise, and a small one relatively most: read shares, not times.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import RobertaConfig, RobertaForSequenceClassification

from infobert_fast import InfoNCE, functional
from infobert_fast.adversary import FreeLB
from infobert_fast.benchmarks.harness.measuring import DEVICE, machine, peak_mib
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step

# What a step calls, and the part it belongs to. No part lies within another.
LABELLED = {
    "input gradient": (torch.autograd, "grad"),
    "bottleneck": (InformationBottleneck, "forward"),
    "selection": (functional, "anchor_indices"),
    "critic": (InfoNCE, "forward"),
    "perturbation": (FreeLB, "start"),
    "ascent": (FreeLB, "ascend"),
}
PARTS = ("forward", "backward", *LABELLED)
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


@contextlib.contextmanager
def labels() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for part, (owner, name) in LABELLED.items():
            stack.enter_context(mock.patch.object(owner, name, labelled(part, getattr(owner, name))))
        yield


def labelled(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return call


def make_step(given: argparse.Namespace, regularised: bool) -> Callable[[], Any]:
    """A micro-batch's step as the trainer takes it, gradients cleared before it."""
    torch.manual_seed(0)
    config = RobertaConfig(
        num_labels=3,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=max(1, given.hidden // 64),
        intermediate_size=4 * given.hidden,
        max_position_embeddings=given.length + 2,
    )
    model = RobertaForSequenceClassification(config).to(DEVICE).train()
    critic = InfoNCE(given.hidden, given.hidden).to(DEVICE)
    shape = (given.batch, given.length)
    lengths = [given.length - (i * given.length // (2 * given.batch)) for i in range(given.batch)]
    mask = (torch.arange(given.length) < torch.tensor(lengths).unsqueeze(1)).long().to(DEVICE)
    ids = torch.randint(10, config.vocab_size, shape).to(DEVICE)
    ids = torch.where(mask.bool(), ids, config.pad_token_id)
    labels = torch.zeros(given.batch, dtype=torch.int64).to(DEVICE)
    batch = Batch({"input_ids": ids, "attention_mask": mask, "labels": labels}, lengths)
    regularisers = (InformationBottleneck("tokens"), AnchoredFeature(negatives=given.negatives), critic)
    adversary = FreeLB(4e-2, 8e-2, 0.0, given.adv_steps)
    objective = Objective(adversary, *(regularisers if regularised else ()), beta=5e-3, alpha=5e-3)

    runner: Any = Runner(PerturbedModel(model))
    runner.forward = labelled("forward", runner.forward)
    runner.backward = labelled("backward", runner.backward)

    def step() -> None:
        for parameter in (*model.parameters(), *critic.parameters()):
            parameter.grad = None
        infobert_step(objective, batch, runner, seed=0)

    return step


def measure(given: argparse.Namespace, regularised: bool) -> dict[str, Any]:
    """Parts of a step, means over the profiled steps."""
    step = make_step(given, regularised)
    for _ in range(2):
        step()
    memory = peak_mib(step)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    with labels(), profile(activities=activities) as profiler:
        for _ in range(given.repeats):
            with record_function("step"):
                step()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
    if given.trace:
        profiler.export_chrome_trace(str(given.trace.with_suffix(f".{'on' if regularised else 'off'}.json")))
    return {**summarise(profiler, given.repeats, given.adv_steps), "peak_mib": memory}


def summarise(profiler: profile, steps: int, passes: int) -> dict[str, Any]:
    """Time of the host (and of the device, where there is one), operators and launches of each part.

    An operator belongs to the part in which it began, on whatever thread: a backward on a device has its own. What the
    device does belongs to the part that launched it: a launch and its kernel share an id, and a kernel that no operator
    launched, as Triton's, is linked to nothing else.
    """
    every = list(profiler.events())
    events = [event for event in every if event.device_type == DeviceType.CPU]
    launched = {event.id: event.time_range.start for event in events if event.name.startswith("cu")}
    whole = sum(event.time_range.elapsed_us() for event in events if event.name == "step")
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in events if e.name in PARTS)
    starts = [start for start, _, _ in spans]
    parts = {part: {"host_us": 0.0, "device_us": 0.0, "operators": 0.0, "launches": 0.0} for part in (*PARTS, "rest")}
    for start, end, part in spans:
        parts[part]["host_us"] += end - start
    parts["rest"]["host_us"] = whole - sum(part["host_us"] for part in parts.values())

    def part_at(time: float) -> dict[str, float]:
        place = bisect.bisect_right(starts, time) - 1
        inside = place >= 0 and time < spans[place][1]
        return parts[spans[place][2] if inside else "rest"]

    for event in every:
        if event.device_type == DeviceType.CPU:
            part = part_at(event.time_range.start)
            part["operators"] += event.name.startswith("aten::")
            part["launches"] += event.name in LAUNCHES
        elif event.id in launched and not event.is_user_annotation:
            part_at(launched[event.id])["device_us"] += event.time_range.elapsed_us()
    per_pass = 1 / (steps * passes)
    parts = {
        name: {key: value * per_pass for key, value in part.items()}
        for name, part in parts.items()
        if any(part.values())
    }
    key = "device_us" if DEVICE == "cuda" else "host_us"
    total = sum(part[key] for part in parts.values())
    for part in parts.values():
        part["share"] = part[key] / total
    return {
        "parts": parts,
        "operators": sum(part["operators"] for part in parts.values()),
        "launches": sum(part["launches"] for part in parts.values()),
        "us": total,
    }


def show(results: dict[str, Any], given: argparse.Namespace) -> None:
    size = f"RoBERTa {given.layers} x {given.hidden}, {given.batch} x {given.length}"
    figures = {"% of time": "share", "operators": "operators"} | ({"launches": "launches"} if DEVICE == "cuda" else {})
    table = Table("part", title=f"One pass of {given.adv_steps}, {size}, {DEVICE}")
    for mode in results:
        for what in figures:
            table.add_column(f"{mode}:\n{what}", justify="right")
    for name in (*PARTS, "rest"):
        cells = []
        for mode in results.values():
            part = mode["parts"].get(name)
            for key in figures.values():
                cells.append("" if part is None else f"{100 * part[key]:.2f}" if key == "share" else f"{part[key]:.0f}")
        table.add_row(name, *cells)
    whole = [f"{mode.get(key, 100):.0f}" for mode in results.values() for key in figures.values()]
    table.add_row("a pass", *whole)
    Console().print(table)
    memory = ", ".join(f"{name} {mode['peak_mib']:.1f} MiB" for name, mode in results.items())
    ratio = results["on"]["us"] / results["off"]["us"]
    Console().print(f"a step adds: {memory}; time of a pass, on over off: {ratio:.2f} (profiled)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128, help="longest sentence; the shortest has half of it")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--adv_steps", type=int, default=3)
    parser.add_argument("--negatives", choices=("chunk", "batch"), default="chunk")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are profiled")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--trace", type=Path, help="write timelines here, NAME.on.json and NAME.off.json")
    given = parser.parse_args()
    results = {name: measure(given, regularised) for name, regularised in (("on", True), ("off", False))}
    show(results, given)
    if given.output:
        settings = {name: value for name, value in vars(given).items() if name not in ("output", "trace")}
        record = {"machine": machine(), "settings": settings, **results}
        given.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
