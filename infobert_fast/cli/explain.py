"""``infobert explain``: colour tokens as useless, anchored or non-robust, in the terminal and on a page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedModel

from infobert_fast import checks
from infobert_fast.aside import write_text
from infobert_fast.cli.files import check_picture
from infobert_fast.cli.models import MODEL_LABELS, load_model
from infobert_fast.data.corpora import load_many
from infobert_fast.data.mixtures import expand
from infobert_fast.data.source import draw
from infobert_fast.data.tasks import NLI, TASKS
from infobert_fast.data.tokenization import check_max_length, check_padding
from infobert_fast.evaluation.accuracy import output_order
from infobert_fast.evaluation.explain import KINDS, Explanation, Kind, explain, label_names
from infobert_fast.evaluation.explain_page import PARTS, explanation_page, rows, verdict, words
from infobert_fast.evaluation.explain_picture import draw_explanations
from infobert_fast.training.look import check_architecture
from infobert_fast.training.models.feature import declared_feature
from infobert_fast.training.models.perturbation import within_positions

__all__ = ["prepare"]

BARS = "▁▂▃▄▅▆▇█"
STYLES: dict[Kind, str] = {"useless": "dim", "anchored": "bold blue", "non-robust": "bold italic underline red"}
MARKS: dict[Kind, tuple[str, str]] = {"useless": ("", ""), "anchored": ("[", "]"), "non-robust": ("<", ">")}


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Read texts and model; the work is the gradients, the terminal's view and the page."""
    about = "Colour tokens as useless, anchored or non-robust, in the terminal and on a page."
    parser = argparse.ArgumentParser(prog="infobert explain", allow_abbrev=False, description=about)
    parser.add_argument("model", help="a fine-tuned classifier's folder, or its name on the hub")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text, or a pair as 'FIRST ||| SECOND'")
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"), help="a pair")
    parser.add_argument("--data", nargs="+", help="sources, whose labels are given: [name=]path[#field][:split]")
    parser.add_argument(
        "--task", choices=[name for name in TASKS if TASKS[name].labels], help="of --data; nli if unset"
    )
    parser.add_argument("--model_labels", nargs="+", metavar="LABEL", help=MODEL_LABELS)
    parser.add_argument("--limit", type=int, help="examples of each source of --data, drawn at random, always the same "
                        "ones; 8 if unset")  # fmt: skip
    parser.add_argument("--label", action="append", help="whose loss is taken, by name or number: once, or for each "
                        "text and pair in their order; the model's prediction where unset")  # fmt: skip
    parser.add_argument("--cl", type=float, default=0.5, help="tokens below this quantile are useless")
    parser.add_argument("--ch", type=float, default=0.9, help="tokens from this quantile on are non-robust")
    parser.add_argument("--output", type=Path, default=Path("explain.html"), help="the page, .html; or a picture, .png")
    parser.add_argument("--max_length", type=int, default=128, help="longest text or pair in tokens")
    parser.add_argument("--batch_tokens", type=int, default=16_384, help="tokens per batch, padding included")
    given = parser.parse_args(list(arguments))
    checks.anchor_window(given.cl, given.ch)
    for name in ("task", "limit") if not given.data else ():
        if getattr(given, name) is not None:
            raise ValueError(f"`{name}` was {getattr(given, name)!r}; it is for the examples of a source: give --data")
    given.limit = 8 if given.limit is None else given.limit
    for name in ("limit", "max_length", "batch_tokens"):
        checks.positive_integer(name, getattr(given, name))
    if given.output.suffix not in (".html", ".png"):
        raise ValueError(f"`output` was {given.output}; it must end in .html (a page) or .png (a picture)")
    if given.output.suffix == ".png":
        check_picture("output", given.output)
    checks.writable("output", given.output)
    texts = [*map(_split, given.texts), *map(tuple, given.pair)]
    if not texts and not given.data:
        raise ValueError(
            "there is no text; give some, as in infobert explain MODEL 'A good film.', or --pair, or --data"
        )
    for parts in texts:
        if not all(part.strip() for part in parts):
            raise ValueError(f"the text {' ||| '.join(parts)!r} is empty, or one of its parts: leave it out")
    if given.label and not texts:
        raise ValueError(f"`label` was {given.label}; the examples of --data have theirs: leave it out")
    task = TASKS[given.task] if given.task else NLI
    sources = expand(given.data, evaluation=True) if given.data else []
    corpora = load_many(sources, task)
    model = load_model(given.model, given.model_labels)
    check_architecture(model)
    labels = _labels(model, given.label, len(texts))
    for corpus in corpora.values():
        output_of = output_order(model, task)
        for row in draw(corpus, given.limit):
            texts.append(tuple(row[name] for name in task.texts))
            labels.append(int(output_of[row["label"]]))
    # The names of a pair's texts are known where a corpus has them, and of NLI by its labels.
    parts = task.texts if corpora or {name.lower() for name in label_names(model)} == set(NLI.labels) else PARTS
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    check_padding(tokenizer, "model", left=declared_feature(model) in ("mean", "last"))
    given.max_length = within_positions(model, given.max_length)
    check_max_length(given.max_length, tokenizer, max(map(len, texts)))
    return lambda: _explain(given, model, tokenizer, texts, labels, parts)


def _explain(
    given: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: Any,
    texts: list[tuple[str, ...]],
    labels: list[int | None],
    parts: Sequence[str],
) -> None:
    window = {"cl": given.cl, "ch": given.ch}
    sizes = {"max_length": given.max_length, "batch_tokens": given.batch_tokens}
    explanations = explain(model, tokenizer, texts, labels, **window, **sizes)
    _show(explanations, parts)
    title = Path(given.model).name or given.model
    if given.output.suffix == ".png":
        draw_explanations(explanations, str(given.output), title, **window, parts=parts)
    else:
        write_text(given.output, explanation_page(explanations, title, **window, parts=parts))
    print(f"written to {given.output}")


def _show(explanations: Sequence[Explanation], parts: Sequence[str]) -> None:
    console = Console(highlight=False)
    plain = not console.is_terminal or console.no_color
    mark = MARKS if plain else dict.fromkeys(KINDS, ("", ""))
    legend = Text()
    for kind in KINDS:
        legend.append(kind.join(mark[kind]), STYLES[kind]).append("   ")
    console.print(legend.append("after a token: its gradient norm, relative", "dim"))
    for number, explanation in enumerate(explanations, 1):
        console.print(Text(f"\n{number}. {''.join(verdict(explanation))}"))
        for part, tokens in rows(explanation):
            line = Text(f"   {parts[part]}: " if explanation.parts > 1 else "   ", "dim")
            for i, word in enumerate(words(tokens)):
                line.append(" " if i else "")
                for token in word:
                    bar = BARS[min(int(token.norm * len(BARS)), len(BARS) - 1)]
                    line.append(token.text.join(mark[token.kind]), STYLES[token.kind])
                    line.append(bar, "dim")
            console.print(line)


def _split(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split("|||"))
    if len(parts) > 2:
        raise ValueError(f"the text {text!r} has {len(parts)} parts; a pair has two: 'FIRST ||| SECOND'")
    return parts


def _labels(model: PreTrainedModel, given: list[str] | None, texts: int) -> list[int | None]:
    """The model's outputs for labels by name or number: one for all texts, or one for each."""
    if not given:
        return [None] * texts
    names = [name.lower() for name in label_names(model)]
    allowed = {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    if unknown := [label for label in given if label.lower() not in allowed]:
        raise ValueError(f"`label` was {unknown[0]!r}; the model has {', '.join(names)}, or 0 to {len(names) - 1}")
    if len(given) not in (1, texts):
        raise ValueError(f"`label` was given {len(given)} times for {texts} texts; give it once, or for each")
    found: list[int | None] = [allowed[label.lower()] for label in given]
    return found if len(found) == texts else found * texts
