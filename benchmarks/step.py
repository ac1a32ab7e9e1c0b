"""Where one InfoBERT step's time goes: the regularisers beside a RoBERTa-base encoder.

``python benchmarks/step.py`` times one pass of a step (32 x 128 tokens, version 6) in its parts: forward,
input gradient, anchor selection, critic and bounds (forward, and backward by themselves), the encoder's backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import RobertaConfig, RobertaForSequenceClassification

from infobert_fast import InfoNCE, functional
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.encoder import embedded_inputs


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def one_pass(model: Any, critic: InfoNCE, batch: dict[str, Tensor], lengths: list[int]) -> dict[str, float]:
    """Seconds of each part of one pass."""
    seconds: dict[str, float] = {}
    bottleneck, anchored, mask = InformationBottleneck("tokens"), AnchoredFeature(), batch["attention_mask"]
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    delta = torch.zeros_like(embeddings).requires_grad_()
    seconds["forward"], outputs = timed(
        lambda: model(**embedded_inputs(model, batch, embeddings + delta), output_hidden_states=True)
    )
    h0, z = outputs.hidden_states[0], outputs.hidden_states[-1][:, 0]
    seconds["bottleneck, forward"], ib = timed(lambda: bottleneck(h0, outputs.hidden_states[-1], mask, lengths))
    loss = outputs.loss + 5e-3 * ib
    seconds["input gradient"], (grad,) = timed(lambda: torch.autograd.grad(loss, delta, retain_graph=True))
    seconds["anchor selection"], _ = timed(lambda: functional.anchor_indices(grad, mask, lengths=lengths))
    # The critic's forward selects the anchors once more; its backward is timed by itself, the encoder's without it.
    leaves = [h0.detach().requires_grad_(), z.detach().requires_grad_()]
    seconds["critic, forward"], afr = timed(lambda: anchored(critic, *leaves, grad, mask, lengths))
    seconds["critic, backward"], _ = timed(lambda: torch.autograd.grad(afr, [*leaves, *critic.parameters()]))
    rows = h0.detach().requires_grad_()
    ib_alone = functional.club(rows, mask)
    seconds["bottleneck, backward"], _ = timed(lambda: torch.autograd.grad(ib_alone, rows))
    seconds["backward"], _ = timed(loss.backward)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = RobertaForSequenceClassification(RobertaConfig(num_labels=3, max_position_embeddings=514)).to(device)
    critic = InfoNCE(768, 768).to(device)
    shape = (given.batch, given.length)
    batch = {
        "input_ids": torch.randint(10, 50_000, shape, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.int64, device=device),
        "labels": torch.zeros(given.batch, dtype=torch.int64, device=device),
    }
    runs = [one_pass(model, critic, batch, [given.length] * given.batch) for _ in range(given.repeats + 1)][1:]
    seconds = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    whole = sum(seconds.values())
    table = Table(
        "part", "ms", "% of the pass", title=f"One pass, RoBERTa-base, {given.batch} x {given.length}, {device}"
    )
    for name, value in seconds.items():
        table.add_row(name, f"{1000 * value:,.1f}", f"{100 * value / whole:.2f}")
    own = sum(v for name, v in seconds.items() if name not in ("forward", "input gradient", "backward"))
    table.add_row("regularisers together", f"{1000 * own:,.1f}", f"{100 * own / whole:.2f}")
    Console().print(table)
    if given.output:
        given.output.write_text(json.dumps({"seconds": seconds, "regularisers": own / whole}, indent=2) + "\n")


if __name__ == "__main__":
    main()
