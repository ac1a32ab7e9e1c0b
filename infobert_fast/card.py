"""A model's card, README.md in its folder: how it was trained and what it scores, for people and for the hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from infobert_fast.aside import write_text

__all__ = ["scored_card", "trained_card"]

logger = logging.getLogger(__name__)

PIPELINES = {"qa": "question-answering"}
TAGS = ("infobert-fast", "adversarial-robustness")


def trained_card(
    folder: Path,
    *,
    task: str,
    base_model: str,
    data: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write how a model was trained into its card; a card that is there keeps everything else that it holds.

    Args:
        folder: the model's.
        task: ``nli``, ``qa``, ...
        base_model: what it was made from, a name on the hub or a folder.
        data: source names by use, as ``{"trained on": [...], "evaluated on": [...]}``.
        settings: what to list: objective, version, the adversary's numbers, learning rate, ...
        metrics: the run's, by name.
    """
    if (card := _read(folder, task)) is None:
        return
    about: Any = card.data
    if not Path(base_model).exists():  # the hub knows no folders
        about.base_model = base_model
    lines = [f"Fine-tuned from `{base_model}` for `{task}` with infobert-fast.", ""]
    lines += [f"* {use}: {', '.join(f'`{name}`' for name in names)}" for use, names in data.items() if names]
    lines += ["", *_table(("setting", "value"), settings), "", *_table(("measure", "value"), metrics)]
    _write(folder, card, "Training", lines)


def scored_card(folder: Path, *, task: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what a model scores into its card, as a table and as the hub's ``model-index``.

    Sets and measures that the card holds already are replaced, all else stays.

    Args:
        folder: the model's.
        task: ``nli``, ``qa``, ...
        results: by set, as :func:`infobert_fast.evaluation.report.as_json` gives them.
    """
    if (card := _read(folder, task)) is None:
        return
    about: Any = card.data
    new = [
        EvalResult(
            task_type=about.pipeline_tag,
            dataset_type=re.sub(r"[^\w./-]+", "-", name),
            dataset_name=name,
            metric_type=measure,
            metric_value=float(row[measure]),
            metric_args={"examples": row["examples"]},
        )
        for name, row in results.items()
        for measure in _measures(row)
    ]
    replaced = {(result.dataset_name, result.metric_type) for result in new}
    kept = [old for old in about.eval_results or [] if (old.dataset_name, old.metric_type) not in replaced]
    about.eval_results = [*kept, *new]
    about.model_name = about.model_name or folder.resolve().name
    shown = {name: {m: f"{100 * row[m]:.1f}" for m in _measures(row)} for name, row in results.items()}
    names = list(dict.fromkeys(measure for row in shown.values() for measure in row))
    lines = [
        "Shares in percent.",
        "",
        "| " + " | ".join(["set", "examples", *(name.replace("_", " ") for name in names), "drop"]) + " |",
        "|" + "---|" * (len(names) + 3),
    ]
    for name, row in results.items():
        drop = f"{100 * row['drop']:.1f} from {row['clean']}" if "drop" in row else ""
        cells = [name, str(row["examples"]), *(shown[name].get(measure, "") for measure in names), drop]
        lines.append("| " + " | ".join(cells) + " |")
    _write(folder, card, "Evaluation", lines)


def _measures(row: Mapping[str, Any]) -> list[str]:
    """The names of a set's scores: what is a number and no edge, count or drop."""
    rest = ("examples", "measure", "low", "high", "clean", "drop")
    return [name for name, value in row.items() if name not in rest and isinstance(value, int | float)]


def _read(folder: Path, task: str) -> ModelCard | None:
    """The folder's card, or a new one; None, with a warning, where the one that is there cannot be read."""
    path = folder / "README.md"
    try:
        card = ModelCard.load(path) if path.is_file() else ModelCard(f"---\n---\n\n# {folder.resolve().name}\n")
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("%s is left as it is, for its metadata cannot be read: %s", path, error)
        return None
    if not isinstance(card.data, ModelCardData):
        card.data = ModelCardData()
    about: Any = card.data
    about.library_name = about.library_name or "transformers"
    about.pipeline_tag = about.pipeline_tag or PIPELINES.get(task, "text-classification")
    about.tags = list(dict.fromkeys([*(about.tags or []), *TAGS]))
    return card


def _table(header: tuple[str, str], values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    return [f"| {header[0]} | {header[1]} |", "|---|---|", *(f"| {key} | {value} |" for key, value in values.items())]


def _write(folder: Path, card: ModelCard, title: str, lines: Sequence[str]) -> None:
    """Put the section where it stood, between its marks, or at the end."""
    begin, end = f"<!-- infobert-fast: {title.lower()} -->", "<!-- infobert-fast: end -->"
    section = "\n".join([begin, f"## {title}", "", *lines, "", end])
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text = card.text if found.search(card.text) else f"{card.text.rstrip()}\n\n{begin}{end}\n"
    card.text = found.sub(lambda match: section, text, count=1)
    write_text(folder / "README.md", str(card))
