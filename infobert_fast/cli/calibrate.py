"""``infobert calibrate``: the adversary and the weights that an encoder wants, as settings for ``infobert train``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel

from infobert_fast import checks
from infobert_fast.aside import write_text
from infobert_fast.cli.files import check_picture
from infobert_fast.cli.models import MODEL_LABELS, load_model
from infobert_fast.data.corpora import load_many
from infobert_fast.data.mixtures import expand
from infobert_fast.data.source import draw
from infobert_fast.data.tasks import TASKS
from infobert_fast.data.tokenization import check_max_length, check_padding, tokenize
from infobert_fast.evaluation.accuracy import output_order
from infobert_fast.evaluation.calibrate import TELLS, Calibration, calibrate
from infobert_fast.evaluation.calibrate_picture import draw_calibration
from infobert_fast.training.look import check_architecture
from infobert_fast.training.models.feature import declared_feature
from infobert_fast.training.models.perturbation import within_positions

__all__ = ["prepare"]


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Read model and examples; the work is the measurement, a table, and the files that were asked for."""
    about = (
        "Measure how large an adversary and how heavy regularisers a trained model wants, before training with them."
    )
    parser = argparse.ArgumentParser(prog="infobert calibrate", allow_abbrev=False, description=about)
    parser.add_argument("model", help="a classifier trained without an adversary: its folder, or its name on the hub")
    parser.add_argument("--data", nargs="+", required=True, help="sources of examples: [name=]path[#field][:split]")
    parser.add_argument("--task", choices=[name for name in TASKS if TASKS[name].labels], default="nli")
    parser.add_argument("--model_labels", nargs="+", metavar="LABEL", help=MODEL_LABELS)
    parser.add_argument("--limit", type=int, default=512, help="examples, drawn at random, always the same ones")
    parser.add_argument("--rise", type=float, default=0.2, help="nats by which one ascent should raise the mean loss")
    parser.add_argument("--share", type=float, default=0.05, help="of the task's gradient that each regulariser gets")
    parser.add_argument("--cl", type=float, default=0.5, help="lower edge of the anchor window")
    parser.add_argument("--ch", type=float, default=0.9, help="upper edge of the anchor window")
    parser.add_argument("--batch_size", type=int, default=32, help="sentences of a batch, as in training")
    parser.add_argument("--max_length", type=int, default=128, help="longest text or pair in tokens")
    parser.add_argument("--batch_tokens", type=int, default=8_192, help="tokens a batch of the attacks, with padding")
    parser.add_argument("--output", type=Path, help="write the settings here, as YAML that `infobert train` takes")
    parser.add_argument("--picture", type=Path, help="draw the rise of the loss against the radius here, as .png")
    given = parser.parse_args(list(arguments))
    for name in ("limit", "batch_size", "max_length", "batch_tokens"):
        checks.positive_integer(name, getattr(given, name))
    for name in ("output", "picture"):
        if getattr(given, name) is not None:
            checks.writable(name, getattr(given, name))
    if given.picture is not None:
        check_picture("picture", given.picture)
    task = TASKS[given.task]
    corpora = load_many(expand(given.data, evaluation=True), task)
    model = load_model(given.model, given.model_labels)
    check_architecture(model)
    output_of = output_order(model, task)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    check_padding(tokenizer, "model", left=declared_feature(model) in ("mean", "last"))
    given.max_length = within_positions(model, given.max_length)
    check_max_length(given.max_length, tokenizer, len(task.texts))
    rows: list[dict[str, Any]] = []
    for corpus in corpora.values():
        rows += tokenize(draw(corpus, given.limit), tokenizer, given.max_length, task=task)
    rows = [{**row, "labels": int(output_of[row["labels"]])} for row in rows]
    if len(rows) < 4 * given.batch_size:
        raise ValueError(
            f"`data` has {len(rows)} examples; four batches of `batch_size` {given.batch_size} are needed: give more "
            f"data, raise `limit`, or lower `batch_size`"
        )
    return lambda: _calibrate(given, model, tokenizer, rows)


def _calibrate(given: argparse.Namespace, model: PreTrainedModel, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    found = calibrate(
        model,
        tokenizer,
        rows,
        rise=given.rise,
        share=given.share,
        cl=given.cl,
        ch=given.ch,
        batch_size=given.batch_size,
        batch_tokens=given.batch_tokens,
    )
    _show(found)
    text = f"# infobert calibrate {given.model}: one ascent raises the loss by {given.rise:g} nats\n"
    text += yaml.safe_dump(found.settings, sort_keys=False)
    print(text, end="")
    if given.output is not None:
        write_text(given.output, text)
    if given.picture is not None:
        draw_calibration(found, given.rise, given.picture, Path(given.model).name or given.model)


def _show(found: Calibration) -> None:
    console = Console(highlight=False)
    table = Table("l2 radius", *found.rises, title=f"rise of the mean loss ({found.loss:.3f} nats)")
    for i, radius in enumerate(found.radii):
        table.add_row(f"{radius:.3g}", *(f"{rises[i]:.3f}" for rises in found.rises.values()))
    console.print(table)
    table = Table("term", "value, nats", "its gradient's norm", "over the task's", title="terms of the loss")
    for name, term in found.terms.items():
        share = term.gradient / found.terms["task"].gradient
        table.add_row(name, f"{term.value:.3f}", f"{term.gradient:.3g}", f"{share:.3g}")
    console.print(table)
    if found.held_out < TELLS:
        console.print(
            f"The fitted critic's bound is {found.held_out:.3f} nats on sentences that it has not seen: anchors tell "
            f"nothing here that it could find, and alpha stays at its published value.",
            soft_wrap=True,
        )
