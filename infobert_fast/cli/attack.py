"""``infobert attack``: change words until a fine-tuned model errs, and keep the texts that fool it."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from infobert_fast import checks
from infobert_fast.aside import write_text
from infobert_fast.cli.files import file_stems, write_json
from infobert_fast.cli.models import MODEL_LABELS, load_model, name_outputs, task_for
from infobert_fast.data.corpora import load_many
from infobert_fast.data.mixtures import expand
from infobert_fast.data.source import draw
from infobert_fast.data.tasks import NLI, TASKS, Task
from infobert_fast.data.tokenization import check_max_length, check_padding
from infobert_fast.evaluation.accuracy import Accuracy, label_order
from infobert_fast.evaluation.attack import Limits, Outcome, attack, run
from infobert_fast.evaluation.recipes import RECIPES, Recipe, substitutions
from infobert_fast.evaluation.scoring import probabilities, similarities
from infobert_fast.training.models.feature import declared_feature
from infobert_fast.training.models.perturbation import within_positions

__all__ = ["prepare"]

WORDS = "words"
# TextFooler's names, the misspelt one included, so that files of either origin are read alike.
ORIGINAL = {"premise": "orig_preimise", "hypothesis": "orig_hypothesis"}
CHANGED = {"premise": "adv_premise", "hypothesis": "adv_hypothesis"}
Scores = Callable[[list[tuple[str, ...]]], np.ndarray]
Compares = Callable[[list[tuple[str, str]]], np.ndarray]


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Read model, corpora and neighbours; the work is the attack, its table and its files."""
    given = _parse(arguments)
    recipes = _recipes(given)
    limits = Limits(given.max_queries, given.max_candidates, given.min_similarity, given.max_changed)
    if given.output is not None:
        checks.writable("output", given.output, folder=True)
    sources = expand(given.data, evaluation=True)
    config = AutoConfig.from_pretrained(given.model)
    name_outputs(config, given.model_labels)
    task = TASKS.get(given.task or task_for(config, sources), NLI)
    if not task.labels:
        raise ValueError(f"the model is of the task {task.name}, whose answers are numbers: an attack needs classes")
    given.field = task.texts[-1] if given.field is None else given.field
    checks.choice("field", given.field, task.texts)
    corpora = load_many(sources, task)
    if given.output is not None:
        file_stems(corpora)
    if given.limit is not None:
        corpora = {name: draw(corpus, given.limit) for name, corpus in corpora.items()}
    model = load_model(given.model, given.model_labels)
    label_order(model, task)  # refuses a model of another task before the work begins
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    check_padding(tokenizer, "model", left=declared_feature(model) in ("mean", "last"))
    check_max_length(given.max_length, tokenizer, len(task.texts))

    def sizes(model: PreTrainedModel) -> dict[str, Any]:
        return {"max_length": within_positions(model, given.max_length), "batch_tokens": given.batch_tokens}

    score = functools.partial(probabilities, model, tokenizer, task=task, **sizes(model))
    compare = None
    if name := given.similarity_model:
        encoder = AutoModel.from_pretrained(name, dtype=torch.float32).to(model.device)
        similarity_tokenizer = AutoTokenizer.from_pretrained(name)
        check_padding(similarity_tokenizer, "similarity_model")
        compare = functools.partial(similarities, encoder, similarity_tokenizer, **sizes(encoder))

    def work() -> None:
        # Around the whole attack: at the end of a context autocast forgets the weights that it has cast.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=given.bf16):
            _attack(given, task, corpora, recipes, limits, score, compare)

    return work


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    about = "Change words until a fine-tuned model errs, and keep the texts that fool it."
    parser = argparse.ArgumentParser(prog="infobert attack", allow_abbrev=False, description=about)
    parser.add_argument("model", help="a fine-tuned classifier's folder, or its name on the hub")
    parser.add_argument("--data", nargs="+", required=True, help="sources: [name=]path[#field][:split], or {path: ...}")
    parser.add_argument(
        "--recipe",
        nargs="+",
        choices=(WORDS, *RECIPES),
        default=[WORDS],
        help="what is done to a word, all of these on each: other words; slips of the hand; signs that look alike or "
        "have no width; spaces. words if unset",
    )
    parser.add_argument("--neighbors", type=Path, help='for words: JSON, {"word": ["substitute", ...], ...}')
    parser.add_argument("--keep_part_of_speech", action="store_true", help="for words: by nltk's tagger, if installed")
    parser.add_argument("--seed", type=int, help="of the changes drawn where there are more than --max_candidates, 0")
    parser.add_argument("--output", type=Path, help="folder for NAME.jsonl, to train or evaluate on, and report.json")
    parser.add_argument("--task", choices=[n for n in TASKS if TASKS[n].labels], help="by the model's labels if unset")
    parser.add_argument(
        "--field", help="the text to change: hypothesis, sentence, ...; the last of the task's if unset"
    )
    parser.add_argument("--model_labels", nargs="+", metavar="LABEL", help=MODEL_LABELS)
    parser.add_argument("--limit", type=int, help="examples of each source, drawn at random, always the same ones")
    parser.add_argument("--max_queries", type=int, help="texts that the model may be shown for an example")
    parser.add_argument("--max_candidates", type=int, default=50, help="changes of each recipe tried for a word")
    parser.add_argument("--max_changed", type=float, help="share of a text's words that may change, one word at least")
    parser.add_argument("--similarity_model", help="a sentence encoder that judges how much a change alters")
    parser.add_argument("--min_similarity", type=float, help="least cosine by that encoder, 0.8 if unset")
    parser.add_argument("--max_length", type=int, default=128, help="longest text or pair in tokens")
    parser.add_argument("--batch_tokens", type=int, default=16_384, help="tokens per batch, padding included")
    parser.add_argument("--bf16", action="store_true", help="run the models in bfloat16 autocast")
    parser.add_argument("--concurrent", type=int, default=256, help="examples under attack at a time")
    given = parser.parse_args(list(arguments))
    for name in ("limit", "concurrent", "max_length", "batch_tokens"):
        if getattr(given, name) is not None:
            checks.positive_integer(name, getattr(given, name))
    if given.min_similarity is not None and given.similarity_model is None:
        raise ValueError(f"`min_similarity` was {given.min_similarity}; name who judges it: --similarity_model MODEL")
    if given.similarity_model is not None and given.min_similarity is None:
        given.min_similarity = 0.8
    return given


def _recipes(given: argparse.Namespace) -> list[Recipe]:
    """What may be done to a word. Raises ``ValueError`` for options without an effect on these recipes."""
    names = list(dict.fromkeys(given.recipe))
    if WORDS in names:
        if given.neighbors is None:
            raise ValueError("`recipe` holds words, and `neighbors` is unset: give a file of them, --neighbors FILE")
    else:
        for option in ("neighbors", "keep_part_of_speech"):
            if getattr(given, option):
                raise ValueError(
                    f"`{option}` is for the recipe words, and `recipe` was {', '.join(names)}: leave it out"
                )
    if given.seed is not None and names == [WORDS]:
        raise ValueError(f"`seed` was {given.seed}; the recipe words draws nothing at random: leave it out")
    tags = _tagger() if given.keep_part_of_speech else None
    seed = given.seed or 0
    return [
        substitutions(_neighbors(given.neighbors), tags) if name == WORDS else RECIPES[name](seed) for name in names
    ]


def _attack(
    given: argparse.Namespace,
    task: Task,
    corpora: dict[str, Any],
    recipes: Sequence[Recipe],
    limits: Limits,
    score: Scores,
    compare: Compares | None,
) -> None:
    title = f"{given.model}, {', '.join(dict.fromkeys(given.recipe))}"
    table = Table("corpus", "clean %", "under attack %", "queries", "words changed %", "examples", title=title)
    report = {}
    for name, corpus in corpora.items():
        rows = list(corpus)
        outcomes = _outcomes(rows, given.field, task, recipes, limits, score, compare, given.concurrent, name)
        report[name] = summary = _summary(outcomes)
        cells = (100 * summary["clean"], 100 * summary["under_attack"], summary["queries"], 100 * summary["changed"])
        table.add_row(name, *(f"{cell:.1f}" for cell in cells), str(len(rows)))
        if given.output is not None:
            path = given.output / f"{file_stems(corpora)[name]}.jsonl"
            write_text(path, _adversarial(rows, outcomes, given.field, task))
    Console().print(table)
    if given.output is not None:
        write_json(given.output / "report.json", report)


def _outcomes(
    rows: list[dict[str, Any]],
    field: str,
    task: Task,
    recipes: Sequence[Recipe],
    limits: Limits,
    score: Scores,
    compare: Compares | None,
    concurrent: int,
    name: str,
) -> list[Outcome]:
    def texts(number: int, text: str) -> tuple[str, ...]:
        row = rows[number] | {field: text}
        return tuple(row[column] for column in task.texts)

    attacks = [attack(row[field], row["label"], recipes, limits, similar=compare is not None) for row in rows]
    found: dict[int, Outcome] = {}
    with tqdm(total=len(rows), desc=name, unit="examples", leave=False, disable=None) as progress:
        ask = lambda questions: score([texts(*question) for question in questions])  # noqa: E731
        for number, outcome in run(attacks, ask, compare, concurrent=concurrent):
            found[number] = outcome
            progress.update()
    return [found[number] for number in range(len(rows))]


def _summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Accuracy before and after; queries of an attacked example and share of words changed in one that fooled."""
    attacked = [outcome for outcome in outcomes if outcome.status != "misclassified"]
    fooled = [outcome for outcome in attacked if outcome.status == "fooled"]
    clean = Accuracy(len(attacked), len(outcomes))
    held = Accuracy(len(attacked) - len(fooled), len(outcomes))
    return {
        "examples": len(outcomes),
        "clean": clean.value,
        "clean_interval": clean.interval,
        "under_attack": held.value,
        "under_attack_interval": held.interval,
        "queries": float(np.mean([outcome.queries for outcome in attacked])) if attacked else 0.0,
        "changed": float(np.mean([outcome.changed / outcome.words for outcome in fooled])) if fooled else 0.0,
    }


def _adversarial(rows: list[dict[str, Any]], outcomes: list[Outcome], field: str, task: Task) -> str:
    """JSON lines of the examples that fooled the model: pairs of NLI in TextFooler's form, others in their task's."""
    lines = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome.status == "fooled":
            right, said = task.labels[row["label"]], task.labels[outcome.prediction]
            if task.texts == NLI.texts:
                line = {ORIGINAL[name]: row[name] for name in ORIGINAL} | {CHANGED[field]: outcome.text}
                line |= {"true_label": right}
            else:
                line = {name: row[name] for name in task.texts} | {field: outcome.text, f"orig_{field}": row[field]}
                line |= {"label": right}
            line |= {"adv_label": said, "queries": outcome.queries, "changed": outcome.changed}
            lines.append(json.dumps(line, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def _neighbors(path: Path) -> dict[str, list[str]]:
    """A neighbour file, checked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 errors are both
        raise ValueError(f"`neighbors` is {path}, which is not UTF-8 JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(words, list) for words in found.values()):
        raise ValueError(f'`neighbors` is {path}; it must hold one mapping, {{"word": ["substitute", ...], ...}}')
    return {word.lower(): [str(other) for other in words] for word, words in found.items()}


def _tagger() -> Callable[[list[str]], list[str]]:
    """nltk's universal parts of speech; neither it nor its data is among our dependencies."""
    try:
        import nltk  # type: ignore[import-not-found]

        nltk.pos_tag(["a", "word"], tagset="universal")
    except (ImportError, LookupError) as error:
        raise ValueError(
            "`keep_part_of_speech` needs nltk and its tagger: pip install 'infobert-fast[attack]', then "
            f"python -m nltk.downloader averaged_perceptron_tagger_eng universal_tagset ({type(error).__name__})"
        ) from None
    return lambda words: [tag for _, tag in nltk.pos_tag(words, tagset="universal")]
