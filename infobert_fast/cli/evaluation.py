"""The work of ``infobert evaluate``: answers, scores, bounds, the tables of one model or two, and the files of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from infobert_fast.aside import write_text
from infobert_fast.card import scored_card
from infobert_fast.cli.files import file_stems, write_json
from infobert_fast.data.answers import AnswerReader
from infobert_fast.data.qa import windows
from infobert_fast.data.source import draw
from infobert_fast.data.tasks import NLI, QUESTION_ANSWERING, Task
from infobert_fast.evaluation.accuracy import Predictions, predictions
from infobert_fast.evaluation.answers import answer, score_answers
from infobert_fast.evaluation.comparison import Answered, compare_models, comparison_json, comparison_table
from infobert_fast.evaluation.figure import draw_information
from infobert_fast.evaluation.information import measure_each
from infobert_fast.evaluation.report import (
    Result,
    answered,
    as_json,
    as_markdown,
    classified,
    compare,
    markdown_table,
    table,
    told_apart,
)
from infobert_fast.metrics.squad import original_id

__all__ = ["Loaded", "Sets", "drawn", "evaluate"]


@dataclass(frozen=True)
class Loaded:
    """A model under the name that was typed, its tokenizer, and how many tokens it is shown of a text."""

    name: str
    model: Any
    tokenizer: Any
    max_length: int


@dataclass(frozen=True)
class Sets:
    """By name each set's task (None for questions) and examples; clean counterparts; foreign texts; for the bounds."""

    tasks: dict[str, Task | None]
    examples: dict[str, datasets.Dataset]
    clean: dict[str, str]
    foreign: dict[str, datasets.Dataset]
    train: datasets.Dataset | None


def drawn(dataset: datasets.Dataset, limit: int) -> datasets.Dataset:
    """:func:`draw`, a question counting once with all its variants."""
    if "id" not in dataset.column_names:
        return draw(dataset, limit)
    ids = set(dataset["id"])
    return draw(dataset, limit, [original_id(key, ids) for key in dataset["id"]])


def evaluate(given: argparse.Namespace, models: list[Loaded], sets: Sets) -> None:
    """Score each model on each set, write and show what came out."""
    results: dict[str, dict[str, Result]] = {}
    answers: list[dict[str, Answered]] = []
    for loaded in models:
        with torch.autocast(loaded.model.device.type, torch.bfloat16, enabled=given.bf16):
            results[loaded.name], found = _scored(given, loaded, sets, len(models) > 1)
        compare(results[loaded.name], sets.clean)
        answers.append(found)
    comparison: tuple[Any, tuple[str, str]] | None = None
    if len(models) == 2:
        comparison = compare_models(*answers), (models[0].name, models[1].name)
    _write(given, results, comparison)  # the bounds take long, and may fail: the scores are not lost with them
    for loaded in models:
        if not given.no_card and Path(loaded.name).is_dir():
            task = next(iter(sets.tasks.values()))
            name = QUESTION_ANSWERING if task is None else task.name
            scored_card(Path(loaded.name), task=name, results=as_json(results[loaded.name]))
    if sets.train is not None:
        _add_bounds(given, models[0], sets, results[models[0].name])
        _write(given, results, comparison)
    for model, rows in results.items():
        _show(model, *table(rows))
    if comparison is not None:
        _show(" or ".join(comparison[1]), *comparison_table(*comparison))


def _scored(
    given: argparse.Namespace, loaded: Loaded, sets: Sets, several: bool
) -> tuple[dict[str, Result], dict[str, Answered]]:
    results: dict[str, Result] = {}
    answers: dict[str, Answered] = {}
    confidence: dict[str, np.ndarray] = {}
    stems = file_stems(sets.examples)
    settings = {"max_length": loaded.max_length, "batch_tokens": given.batch_tokens}
    for name, dataset in sets.examples.items():
        task, stem = sets.tasks[name], None
        if given.predictions is not None:
            folder = (
                given.predictions / file_stems(given.model)[loaded.name].strip("_.") if several else given.predictions
            )
            stem = folder / stems[name]
        if task is None:
            results[name], answers[name] = _questions(given, loaded, dataset, stem, {**settings, "name": name})
            continue
        found = predictions(loaded.model, loaded.tokenizer, dataset, task=task, name=name, **settings)
        labels = np.array(dataset["label"])
        results[name] = classified(task, found.values, labels, found.probabilities)
        right = found.values == labels if task.labels else None
        answers[name] = Answered(task.metrics[0], found.values, labels, right)
        if found.probabilities is not None:
            confidence[name] = _confidence(found)
        if stem is not None:
            words = [task.labels[i] for i in found.values] if task.labels else [f"{v:.4f}" for v in found.values]
            lines = ["index\tprediction", *(f"{i}\t{word}" for i, word in enumerate(words))]
            write_text(stem.with_name(stem.name + ".tsv"), "\n".join(lines) + "\n")
    for name, dataset in sets.foreign.items():
        own = next(iter(sets.examples))
        found = predictions(loaded.model, loaded.tokenizer, dataset, task=sets.tasks[own] or NLI, name=name, **settings)
        results[name] = told_apart(confidence[own], _confidence(found), own)
    return results, answers


def _confidence(found: Predictions) -> np.ndarray:
    """The probability of each answer."""
    assert found.probabilities is not None
    return found.probabilities[np.arange(len(found.values)), found.values]


def _questions(
    given: argparse.Namespace, loaded: Loaded, questions: datasets.Dataset, stem: Path | None, common: dict[str, Any]
) -> tuple[Result, Answered]:
    reader = AnswerReader(given.n_best, given.max_answer_length, given.null_threshold)
    found = answer(loaded.model, loaded.tokenizer, questions, reader=reader, doc_stride=given.doc_stride, **common)
    if stem is not None:
        n_best = {key: [vars(span) for span in spans] for key, spans in found.n_best.items()}
        write_json(stem.with_name(stem.name + ".json"), found.predictions)
        write_json(stem.with_name(stem.name + ".nbest.json"), n_best)
        write_json(stem.with_name(stem.name + ".null_odds.json"), found.null_odds)
    scores = score_answers(questions, found.predictions)
    return answered(scores), Answered("f1", scores.each_f1, None, scores.each_em == 1)


def _add_bounds(given: argparse.Namespace, loaded: Loaded, sets: Sets, results: dict[str, Result]) -> None:
    """Both information bounds of each set."""
    assert sets.train is not None
    # A batch's examples are each other's negatives: those that stand together in a file need not meet here.
    train = sets.train.shuffle(seed=0)
    few = {name: drawn(part, given.information_limit).shuffle(seed=0) for name, part in sets.examples.items()}
    task = next(iter(sets.tasks.values()))
    if task is None:
        train = windows(train, loaded.tokenizer, loaded.max_length, given.doc_stride)
        few = {name: windows(part, loaded.tokenizer, loaded.max_length, given.doc_stride) for name, part in few.items()}
    settings = {"cl": given.cl, "ch": given.ch, "others": given.mi_report is not None, "task": task or NLI}
    bounds = measure_each(loaded.model, loaded.tokenizer, train, few, max_length=loaded.max_length, **settings)
    for name in bounds:
        results[name].information = bounds[name]
    if given.mi_report is not None:
        draw_information(bounds, given.mi_report, loaded.name)


def _show(title: str, header: list[str], rows: list[list[str]]) -> None:
    shown = Table(*header, title=title)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    # Where nobody watches, a line may be as long as it is.
    (console if console.is_terminal else Console(width=200)).print(shown)


def _write(
    given: argparse.Namespace,
    results: Mapping[str, Mapping[str, Result]],
    comparison: tuple[Any, tuple[str, str]] | None,
) -> None:
    if given.output is None:
        return
    if given.output.suffix == ".md":
        pages = [as_markdown(model, rows) for model, rows in results.items()]
        if comparison is not None:
            lines = markdown_table(*comparison_table(*comparison))
            pages.append("\n".join([f"# {' or '.join(comparison[1])}", "", *lines, ""]))
        write_text(given.output, "\n".join(pages))
        return
    content: dict[str, Any] = {model: as_json(rows) for model, rows in results.items()}
    if comparison is None:
        write_json(given.output, next(iter(content.values())))
    else:
        write_json(given.output, {"models": content, "comparison": comparison_json(*comparison)})
