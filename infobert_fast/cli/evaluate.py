"""``infobert evaluate``: a fine-tuned model on one or many corpora."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast.cli.files import write_json
from infobert_fast.data.corpora import load_many
from infobert_fast.evaluation.accuracy import Accuracy, evaluate

__all__ = ["prepare"]


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Read corpora and model; the work is the evaluation and its table."""
    parser = argparse.ArgumentParser(prog="infobert evaluate", allow_abbrev=False)
    parser.add_argument("model", help="a fine-tuned model's folder, or its name on the hub")
    parser.add_argument("--data", nargs="+", required=True, help="sources: [name=]path[#field][:split]")
    parser.add_argument("--output", type=Path, help="also write the table here, as JSON")
    parser.add_argument("--max_length", type=int, default=128, help="longest pair in tokens")
    parser.add_argument("--batch_tokens", type=int, default=16_384, help="tokens per batch, padding included")
    given = parser.parse_args(list(arguments))
    corpora = load_many(given.data)
    model = AutoModelForSequenceClassification.from_pretrained(given.model, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    return lambda: _evaluate(given, model, tokenizer, corpora)


def _evaluate(given: argparse.Namespace, model: Any, tokenizer: Any, corpora: dict[str, Any]) -> None:
    results = evaluate(model, tokenizer, corpora, max_length=given.max_length, batch_tokens=given.batch_tokens)
    table = Table("corpus", "accuracy %", "95 % interval", "examples", title=given.model)
    for name, result in results.items():
        low, high = result.interval
        table.add_row(name, f"{100 * result.value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", str(result.count))
    Console().print(table)
    if given.output is not None:
        write_json(given.output, {name: _as_dict(result) for name, result in results.items()})


def _as_dict(result: Accuracy) -> dict[str, Any]:
    low, high = result.interval
    return {"accuracy": result.value, "low": low, "high": high, "examples": result.count}
