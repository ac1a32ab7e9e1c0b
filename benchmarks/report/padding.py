"""What padding costs on real sentence pairs, counted: tokens and FLOPs that an encoder computes over those it needs.

``python benchmarks/report/padding.py`` batches SNLI and MultiNLI's training pairs in each of the trainer's ways.
The corpora and RoBERTa's vocabulary are read from the folder ``INFOBERT_FAST_DATA`` (default ``../shared/data``). These
are counts, no timings: they are the same on every machine. ``--output FILE`` also writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.trainer_pt_utils import LengthGroupedSampler

from infobert_fast.data.batching import TokenBatches
from infobert_fast.data.packing import pack_sentences

CORPORA = ("snli/train_sub20k.jsonl", "mnli/train_sub12k.jsonl")
LONGEST, SPECIAL = 128, 4  # RoBERTa puts four special tokens around a pair
LAYERS, HIDDEN = 24, 1024  # RoBERTa-large, 12 hidden^2 weights a layer


def pair_lengths(folder: Path) -> list[int]:
    """Tokens of each pair, cut at 128."""
    vocabulary, merges = (str(folder / "roberta_bpe" / name) for name in ("encoder.json", "vocab.bpe"))
    tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lengths = []
    for name in CORPORA:
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        sides = [tokenizer.encode_batch([row[side] for row in rows]) for side in ("premise", "hypothesis")]
        lengths += [min(len(a.ids) + len(b.ids) + SPECIAL, LONGEST) for a, b in zip(*sides, strict=True)]
    return lengths


def forward_flops(rows: int, width: int) -> int:
    """One forward over ``rows`` rows of ``width`` tokens: linear layers and attention's two products."""
    return rows * (2 * LAYERS * 12 * HIDDEN**2 * width + 4 * LAYERS * HIDDEN * width**2)


def batches(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="sentences of a batch")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="budget of a batch by tokens")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    folder = Path(os.environ.get("INFOBERT_FAST_DATA", "../shared/data"))
    lengths = pair_lengths(folder)
    torch.manual_seed(0)  # length grouping draws from it
    shuffled = np.random.default_rng(0).permutation(len(lengths)).tolist()
    grouped = list(LengthGroupedSampler(given.batch, lengths=lengths))
    random = list(batches(shuffled, given.batch))
    plans = {
        f"padded to {LONGEST}": (random, "fixed"),
        "padded to the batch's longest": (random, "padded"),
        "group_by_length": (list(batches(grouped, given.batch)), "padded"),
        f"batch_tokens {given.batch_tokens:,}": (list(TokenBatches(lengths, given.batch_tokens)), "padded"),
        "packing": (random, "packed"),
    }
    needed = sum(lengths)
    needed_flops = sum(forward_flops(1, n) for n in lengths)
    found = []
    for name, (plan, layout) in plans.items():
        tokens = flops = 0
        for batch in plan:
            own = [lengths[i] for i in batch]
            rows, width = len(own), LONGEST if layout == "fixed" else max(own)
            if layout == "packed":
                rows, width = pack_sentences(own, width).source.shape
            tokens += rows * width
            flops += forward_flops(rows, width)
        sizes = sorted(len(batch) for batch in plan)
        found.append(
            {
                "batches": name,
                "tokens": tokens / needed,
                "flops": flops / needed_flops,
                "count": len(plan),
                "sentences": [sizes[0], sizes[len(sizes) // 2], sizes[-1]],
            }
        )
    table = Table(
        "batches", "tokens computed / needed", "FLOPs computed / needed", "number", "sentences: least, median, most",
        title=f"{len(lengths):,} pairs, {needed / len(lengths):.1f} tokens on average; RoBERTa-large",
    )  # fmt: skip
    for row in found:
        sizes = ", ".join(f"{n:,}" for n in row["sentences"])
        table.add_row(row["batches"], f"{row['tokens']:.3f}", f"{row['flops']:.3f}", f"{row['count']:,}", sizes)
    Console().print(table)
    if given.output:
        content = {
            "corpora": CORPORA,
            "pairs": len(lengths),
            "tokens": needed,
            "batch": given.batch,
            "batch_tokens": given.batch_tokens,
            "rows": found,
        }
        given.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
