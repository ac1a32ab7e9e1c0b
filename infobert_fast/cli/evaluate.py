"""``infobert evaluate``: a fine-tuned model on clean and adversarial sets, in one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer

from infobert_fast import checks
from infobert_fast.cli.files import check_picture, file_stems, write_json
from infobert_fast.cli.models import MODEL_LABELS, check_head, load_model, name_outputs, task_for
from infobert_fast.data.answers import AnswerReader
from infobert_fast.data.corpora import by_name, load
from infobert_fast.data.mixtures import expand
from infobert_fast.data.qa import load_questions, question_room, windows
from infobert_fast.data.source import FEVER_ORDERS, FeverOrder, Source, check_file, draw
from infobert_fast.data.tasks import NLI, QUESTION_ANSWERING, TASK_NAMES, TASKS, Task
from infobert_fast.data.tokenization import check_max_length, check_padding
from infobert_fast.evaluation.accuracy import label_order, output_order, predict
from infobert_fast.evaluation.answers import answer, score_answers
from infobert_fast.evaluation.aside import write_text
from infobert_fast.evaluation.figure import draw_information
from infobert_fast.evaluation.information import measure_each
from infobert_fast.evaluation.report import Result, answered, as_json, as_markdown, classified, compare, table
from infobert_fast.evaluation.suite import SUITES, resolve, suite_task
from infobert_fast.metrics.squad import original_id
from infobert_fast.training.look import check_architecture
from infobert_fast.training.models.perturbation import within_positions

__all__ = ["prepare"]

# Options that mean something only with others, and what they are where unset.
OF_QUESTIONS = {"doc_stride": 128, "n_best": 20, "max_answer_length": 30, "null_threshold": None}
OF_INFORMATION = {"cl": 0.5, "ch": 0.9, "information_limit": 1_000, "mi_report": None}
OF_FEVER = ("nli", "mnli", "nli2")  # the tasks that FEVER's claims are read for


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Read the sets and the model; the work is the evaluation, its table and its files."""
    given = _parse(arguments)
    order: FeverOrder = given.fever_order or "reference"
    if given.suite:
        sources, clean = resolve(given.suite, data_dir=given.data_dir, fever_order=order)
    else:
        sources, clean = expand(given.data, fever_order=order, evaluation=True), {}
    named = by_name(sources)
    if given.predictions is not None:
        file_stems(named)
    fitting = [] if given.information is None else expand([given.information], fever_order=order)
    for source in filter(lambda source: source.is_file, [*named.values(), *fitting]):
        check_file(source)  # before the model, which may have to be fetched
    config = AutoConfig.from_pretrained(given.model)
    name_outputs(config, given.model_labels)
    task = given.task or suite_task(given.suite or []) or task_for(config, sources)
    tasks = {name: source.task or task for name, source in named.items()}
    questions = _only_what_matters(given, [*tasks.values(), *(source.task or task for source in fitting)])
    check_head(config, questions=questions, task=task)

    def read(source: Source, task: str, limit: int | None) -> datasets.Dataset:
        dataset = load_questions(source) if questions else load(source, TASKS[task])
        return dataset if limit is None else _drawn(dataset, limit)

    sets = {name: read(source, tasks[name], given.limit) for name, source in named.items()}
    parts = [read(source, source.task or task, given.information_limit) for source in fitting]
    train = datasets.concatenate_datasets(parts) if parts else None
    model = load_model(given.model, given.model_labels, questions=questions)
    for kind in (TASKS[name] for name in dict.fromkeys(tasks.values()) if name in TASKS and TASKS[name].labels):
        (label_order if train is None else output_order)(model, kind)
    if train is not None:
        check_architecture(model)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    check_padding(tokenizer, "model")
    given.max_length = within_positions(model, given.max_length or (384 if questions else 128))
    if questions:
        question_room(tokenizer, given.max_length, given.doc_stride)
    else:
        check_max_length(given.max_length, tokenizer, max(len(TASKS[name].texts) for name in tasks.values()))
    kinds = {name: TASKS.get(kind) for name, kind in tasks.items()}
    return lambda: _evaluate(given, model, tokenizer, sets, clean, kinds, train)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    about = "Score a fine-tuned model on clean and adversarial sets, in one table."
    parser = argparse.ArgumentParser(prog="infobert evaluate", allow_abbrev=False, description=about)
    parser.add_argument("model", help="a fine-tuned model's folder, or its name on the hub")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", nargs="+", help="sources, each by itself: [name=]path[#field][:split], or {path: ...}")
    what.add_argument(
        "--suite",
        nargs="+",
        help=f"{' or '.join(SUITES)}; or sources, of which the first is the clean set that the others are held against",
    )
    parser.add_argument("--data_dir", help="folder of a suite's files; the hub where unset")
    parser.add_argument("--task", choices=TASK_NAMES, help="what the model does; by the suite or the model where unset")
    parser.add_argument("--model_labels", nargs="+", metavar="LABEL", help=MODEL_LABELS)
    parser.add_argument("--fever_order", choices=FEVER_ORDERS, help=f"how FEVER is paired, {FEVER_ORDERS[0]} if unset")
    parser.add_argument("--limit", type=int, help="examples of each set, drawn at random, always the same ones")
    parser.add_argument("--output", type=Path, help="also write the table here: .json, or .md")
    parser.add_argument("--predictions", type=Path, help="folder for each set's predictions, as GLUE or SQuAD has them")
    parser.add_argument("--information", help="a source to fit a fresh critic on: adds both information bounds")
    parser.add_argument("--mi_report", type=Path, help="with --information: draw the bounds of all sets, as .png")
    parser.add_argument("--cl", type=float, help="with --information: lower edge of the anchor window, 0.5 if unset")
    parser.add_argument("--ch", type=float, help="with --information: upper edge of the anchor window, 0.9 if unset")
    parser.add_argument("--information_limit", type=int, help="examples a set used for the bounds, 1000 if unset")
    parser.add_argument("--max_length", type=int, help="longest text or pair (128) or window (384) in tokens")
    parser.add_argument("--batch_tokens", type=int, default=16_384, help="tokens per batch, padding included")
    parser.add_argument("--bf16", action="store_true", help="run the model in bfloat16 autocast")
    parser.add_argument("--doc_stride", type=int, help="tokens that two windows share, 128 if unset (qa)")
    parser.add_argument("--n_best", type=int, help="spans kept a question, 20 if unset (qa)")
    parser.add_argument("--max_answer_length", type=int, help="longest answer in tokens, 30 if unset (qa)")
    parser.add_argument(
        "--null_threshold", type=float, help="answer nothing beyond this null score; never if unset (qa)"
    )
    given = parser.parse_args(list(arguments))
    given.of_questions = {name: value for name in OF_QUESTIONS if (value := getattr(given, name)) is not None}
    if given.information is None:
        for name in OF_INFORMATION:
            if (value := getattr(given, name)) is not None:
                raise ValueError(
                    f"`{name}` was {value}; name a source to fit the bounds' critics on: --information SOURCE"
                )
    for name, value in {**OF_QUESTIONS, **OF_INFORMATION}.items():
        setattr(given, name, value if getattr(given, name) is None else getattr(given, name))
    for name in ("limit", "information_limit", "max_length", "batch_tokens", "n_best", "max_answer_length"):
        checks.positive_integer(name, getattr(given, name), optional=name in ("limit", "max_length"))
    checks.anchor_window(given.cl, given.ch)
    if given.information is not None and given.cl == given.ch:
        raise ValueError(f"`cl` and `ch` were both {given.cl} with `information`, which needs anchors: part them")
    if given.output is not None and given.output.suffix not in (".json", ".md"):
        raise ValueError(f"`output` was {given.output}; it must end in .json or .md (a table)")
    suite = suite_task(given.suite or [])
    if given.data_dir is not None and suite is None:
        raise ValueError(f"`data_dir` was {given.data_dir!r}; it says where a suite's files are: name one, --suite nli")
    if None not in (suite, given.task) and given.task != suite:
        raise ValueError(
            f"`task` was {given.task!r} with the suite {suite!r}, which has a task of its own: leave it out"
        )
    if given.output is not None:
        checks.writable("output", given.output)
    if given.predictions is not None:
        checks.writable("predictions", given.predictions, folder=True)
    if given.mi_report is not None:
        check_picture("mi_report", given.mi_report)
    return given


def _only_what_matters(given: argparse.Namespace, tasks: Sequence[str]) -> bool:
    """Refuse options that would have no effect on sets of these tasks; whether they are questions."""
    kinds = list(dict.fromkeys(tasks))
    if len(kinds) > 1 and QUESTION_ANSWERING in kinds:
        raise ValueError(f"the sets are of the tasks {', '.join(kinds)}; a model answers or classifies: part them")
    if len(kinds) > 1 and given.information is not None:
        raise ValueError(f"the sets are of the tasks {', '.join(kinds)}; `information` is measured on one: part them")
    questions = kinds == [QUESTION_ANSWERING]
    if not questions and given.of_questions:
        name, value = next(iter(given.of_questions.items()))
        raise ValueError(f"`{name}` was {value}; it is for questions, and the task is {kinds[0]}: leave it out")
    if given.model_labels is not None and not any(TASKS[kind].labels for kind in kinds if kind in TASKS):
        raise ValueError(f"`model_labels` was {given.model_labels}; {kinds[0]} has no classes: leave it out")
    if given.fever_order is not None and not set(kinds) & set(OF_FEVER):
        raise ValueError(f"`fever_order` was {given.fever_order!r}; it is for {', '.join(OF_FEVER)}: leave it out")
    return questions


def _drawn(dataset: datasets.Dataset, limit: int) -> datasets.Dataset:
    """:func:`draw`, a question counting once with all its variants."""
    if "id" not in dataset.column_names:
        return draw(dataset, limit)
    ids = set(dataset["id"])
    return draw(dataset, limit, [original_id(key, ids) for key in dataset["id"]])


def _evaluate(
    given: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, datasets.Dataset],
    clean: Mapping[str, str],
    tasks: Mapping[str, Task | None],
    train: datasets.Dataset | None,
) -> None:
    max_length = given.max_length
    results: dict[str, Result] = {}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=given.bf16):
        for name, dataset in sets.items():
            stem = None if given.predictions is None else given.predictions / file_stems(sets)[name]
            task = tasks[name]
            common = {"max_length": max_length, "batch_tokens": given.batch_tokens, "name": name}
            if task is None:
                results[name] = _questions(given, model, tokenizer, dataset, stem, common)
            else:
                found = predict(model, tokenizer, dataset, task=task, **common)
                results[name] = classified(task, found, np.array(dataset["label"]))
                if stem is not None:
                    words = [task.labels[i] for i in found] if task.labels else [f"{value:.4f}" for value in found]
                    lines = ["index\tprediction", *(f"{i}\t{word}" for i, word in enumerate(words))]
                    write_text(stem.with_name(stem.name + ".tsv"), "\n".join(lines) + "\n")
    compare(results, clean)
    _write(given, results)  # the bounds take long, and may fail: the scores are not lost with them
    if train is not None:
        # A batch's examples are each other's negatives: those that stand together in a file need not meet here.
        train = train.shuffle(seed=0)
        few = {name: _drawn(dataset, given.information_limit).shuffle(seed=0) for name, dataset in sets.items()}
        task = next(iter(tasks.values()))
        if task is None:
            train = windows(train, tokenizer, max_length, given.doc_stride)
            few = {name: windows(part, tokenizer, max_length, given.doc_stride) for name, part in few.items()}
        window = {"cl": given.cl, "ch": given.ch, "others": given.mi_report is not None}
        bounds = measure_each(model, tokenizer, train, few, max_length=max_length, task=task or NLI, **window)
        for name, result in results.items():
            result.information = bounds[name]
        if given.mi_report is not None:
            draw_information(bounds, given.mi_report, str(given.model))
        _write(given, results)
    _show(given, results)


def _questions(
    given: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    questions: datasets.Dataset,
    stem: Path | None,
    common: dict[str, Any],
) -> Result:
    reader = AnswerReader(given.n_best, given.max_answer_length, given.null_threshold)
    answers = answer(model, tokenizer, questions, reader=reader, doc_stride=given.doc_stride, **common)
    if stem is not None:
        n_best = {key: [vars(span) for span in spans] for key, spans in answers.n_best.items()}
        write_json(stem.with_name(stem.name + ".json"), answers.predictions)
        write_json(stem.with_name(stem.name + ".nbest.json"), n_best)
        write_json(stem.with_name(stem.name + ".null_odds.json"), answers.null_odds)
    return answered(score_answers(questions, answers.predictions))


def _show(given: argparse.Namespace, results: Mapping[str, Result]) -> None:
    header, rows = table(results)
    shown = Table(*header, title=given.model)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    # Where nobody watches, a line may be as long as it is.
    (console if console.is_terminal else Console(width=200)).print(shown)


def _write(given: argparse.Namespace, results: Mapping[str, Result]) -> None:
    if given.output is not None:
        if given.output.suffix == ".md":
            write_text(given.output, as_markdown(str(given.model), results))
        else:
            write_json(given.output, as_json(results))
