"""``infobert evaluate``: a fine-tuned model, or two, on clean and adversarial sets, in one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoTokenizer

from infobert_fast import checks
from infobert_fast.cli.evaluation import Loaded, Sets, drawn, evaluate
from infobert_fast.cli.files import check_picture, file_stems
from infobert_fast.cli.models import MODEL_LABELS, check_head, load_model, name_outputs, task_for
from infobert_fast.data.corpora import by_name, load, load_texts
from infobert_fast.data.mixtures import expand
from infobert_fast.data.qa import load_questions, question_room
from infobert_fast.data.source import FEVER_ORDERS, FeverOrder, Source, check_file, draw
from infobert_fast.data.tasks import NLI, QUESTION_ANSWERING, TASK_NAMES, TASKS
from infobert_fast.data.tokenization import check_max_length, check_padding
from infobert_fast.evaluation.accuracy import label_order, output_order
from infobert_fast.evaluation.suite import SUITES, resolve, suite_task
from infobert_fast.training.look import check_architecture
from infobert_fast.training.models.feature import declared_feature
from infobert_fast.training.models.perturbation import within_positions

__all__ = ["prepare"]

# Options that mean something only with others, and what they are where unset.
OF_QUESTIONS = {"doc_stride": 128, "n_best": 20, "max_answer_length": 30, "null_threshold": None}
OF_INFORMATION = {"cl": 0.5, "ch": 0.9, "information_limit": 1_000, "mi_report": None}
OF_FEVER = ("nli", "mnli", "nli2")  # the tasks that FEVER's claims are read for


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Read the sets and the models; the work is the evaluation, its tables and its files."""
    given = _parse(arguments)
    order: FeverOrder = given.fever_order or "reference"
    if given.suite:
        sources, clean = resolve(given.suite, data_dir=given.data_dir, fever_order=order)
    else:
        sources, clean = expand(given.data, fever_order=order, evaluation=True), {}
    foreign = expand(given.ood or [], fever_order=order, evaluation=True)
    named, others = by_name(sources), by_name(foreign)
    by_name([*sources, *foreign])
    if given.predictions is not None:
        file_stems(named)
    fitting = [] if given.information is None else expand([given.information], fever_order=order)
    for source in filter(lambda source: source.is_file, [*named.values(), *foreign, *fitting]):
        check_file(source)  # before the model, which may have to be fetched
    configs = [AutoConfig.from_pretrained(name) for name in given.model]
    for config in configs:
        name_outputs(config, given.model_labels)
    task = given.task or suite_task(given.suite or []) or task_for(configs[0], sources)
    tasks = {name: source.task or task for name, source in named.items()}
    questions = _only_what_matters(given, [*tasks.values(), *(source.task or task for source in fitting)])
    for config in configs:
        check_head(config, questions=questions, task=task)

    def read(source: Source, task: str, limit: int | None) -> datasets.Dataset:
        dataset = load_questions(source) if questions else load(source, TASKS[task])
        return dataset if limit is None else drawn(dataset, limit)

    parts = [read(source, source.task or task, given.information_limit) for source in fitting]
    first = TASKS.get(next(iter(tasks.values())))
    strange = {name: load_texts(source, first or NLI) for name, source in others.items()}
    sets = Sets(
        {name: TASKS.get(kind) for name, kind in tasks.items()},
        {name: read(source, tasks[name], given.limit) for name, source in named.items()},
        clean,
        {name: texts if given.limit is None else draw(texts, given.limit) for name, texts in strange.items()},
        datasets.concatenate_datasets(parts) if parts else None,
    )
    models = [_loaded(name, given, sets) for name in given.model]
    return lambda: evaluate(given, models, sets)


def _loaded(name: str, given: argparse.Namespace, sets: Sets) -> Loaded:
    """A model with its tokenizer, both found to fit the sets."""
    questions = None in sets.tasks.values()
    model = load_model(name, given.model_labels, questions=questions)
    for task in dict.fromkeys(task.name for task in sets.tasks.values() if task is not None and task.labels):
        (label_order if sets.train is None else output_order)(model, TASKS[task])
    if sets.train is not None:
        check_architecture(model)
    tokenizer = AutoTokenizer.from_pretrained(name)
    check_padding(tokenizer, "model", left=declared_feature(model) in ("mean", "last"))
    max_length = within_positions(model, given.max_length or (384 if questions else 128))
    if questions:
        question_room(tokenizer, max_length, given.doc_stride)
    else:
        check_max_length(max_length, tokenizer, max(len(task.texts) for task in sets.tasks.values() if task))
    return Loaded(name, model, tokenizer, max_length)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    about = "Score a fine-tuned model on clean and adversarial sets, in one table."
    parser = argparse.ArgumentParser(prog="infobert evaluate", allow_abbrev=False, description=about)
    parser.add_argument(
        "model", nargs="+", help="a fine-tuned model's folder, or its name on the hub; of two the difference is tested"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", nargs="+", help="sources, each by itself: [name=]path[#field][:split], or {path: ...}")
    what.add_argument(
        "--suite",
        nargs="+",
        help=f"{' or '.join(SUITES)}; or sources, of which the first is the clean set that the others are held against",
    )
    parser.add_argument(
        "--ood", nargs="+", help="sources of foreign texts: AUROC of the confidence, against the first set"
    )
    parser.add_argument("--data_dir", help="folder of a suite's files; the hub where unset")
    parser.add_argument("--task", choices=TASK_NAMES, help="what the model does; by the suite or the model where unset")
    parser.add_argument("--model_labels", nargs="+", metavar="LABEL", help=MODEL_LABELS)
    parser.add_argument("--fever_order", choices=FEVER_ORDERS, help=f"how FEVER is paired, {FEVER_ORDERS[0]} if unset")
    parser.add_argument("--limit", type=int, help="examples of each set, drawn at random, always the same ones")
    parser.add_argument("--output", type=Path, help="also write the table here: .json, or .md")
    parser.add_argument("--no_card", action="store_true", help="leave README.md in the model's folder as it is")
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
    if len(given.model) > 2 or len(set(given.model)) < len(given.model):
        raise ValueError(f"`model` was {' '.join(given.model)}; give one model, or two different ones to compare")
    if len(given.model) == 2 and given.information is not None:
        raise ValueError(
            f"`information` was {given.information!r} with two models; it is measured on one: leave one out"
        )
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
    if given.ood is not None and (questions or not TASKS[kinds[0]].labels):
        raise ValueError(f"`ood` was {given.ood}; {kinds[0]} has no classes to be confident of: leave it out")
    if not questions and given.of_questions:
        name, value = next(iter(given.of_questions.items()))
        raise ValueError(f"`{name}` was {value}; it is for questions, and the task is {kinds[0]}: leave it out")
    if given.model_labels is not None and not any(TASKS[kind].labels for kind in kinds if kind in TASKS):
        raise ValueError(f"`model_labels` was {given.model_labels}; {kinds[0]} has no classes: leave it out")
    if given.fever_order is not None and not set(kinds) & set(OF_FEVER):
        raise ValueError(f"`fever_order` was {given.fever_order!r}; it is for {', '.join(OF_FEVER)}: leave it out")
    return questions
