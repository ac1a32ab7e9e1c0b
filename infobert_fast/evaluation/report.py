"""One table of clean and adversarial results: measure, interval, drop from the clean set, information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infobert_fast.data.tasks import Task
from infobert_fast.evaluation.accuracy import Accuracy
from infobert_fast.evaluation.information import Information
from infobert_fast.metrics.calibration import auroc, brier, expected_calibration_error
from infobert_fast.metrics.glue import METRICS, glue_scores
from infobert_fast.metrics.squad import SquadScores

__all__ = [
    "Result",
    "answered",
    "as_json",
    "as_markdown",
    "classified",
    "compare",
    "markdown_table",
    "table",
    "told_apart",
]


@dataclass
class Result:
    """One set: ``count`` examples (questions, each with its worst variant), and its measures.

    ``low`` and ``high`` are the 95 % interval of the headline ``measure``. ``clean`` is what it is compared with,
    ``drop`` how far below that the headline lies, in points. Shares are in percent, correlations times 100.
    """

    count: int
    measure: str
    scores: dict[str, float]
    low: float
    high: float
    clean: str | None = None
    drop: float | None = None
    information: Information | None = None

    @property
    def value(self) -> float:
        return self.scores[self.measure]


def classified(
    task: Task,
    predictions: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    resamples: int = 1_000,
) -> Result:
    """A classification or regression task's result; with ``probabilities`` also how far they can be believed.

    The interval is Wilson's for accuracy and, for the other measures, the middle 95 % over bootstrap resamples of the
    examples (a fixed seed).
    """
    headline = task.metrics[0]
    scores = {name: 100 * value for name, value in glue_scores(task.metrics, predictions, labels).items()}
    if probabilities is not None:
        confidence = probabilities[np.arange(len(predictions)), predictions]
        scores["calibration_error"] = 100 * expected_calibration_error(confidence, predictions == labels)
        scores["brier"] = 100 * brier(probabilities, labels)
    if headline == "accuracy":
        low, high = Accuracy(int((predictions == labels).sum()), len(labels)).interval
    else:
        random = np.random.default_rng(0)
        draws = (random.integers(0, len(labels), len(labels)) for _ in range(resamples))
        low, high = np.quantile([METRICS[headline](predictions[i], labels[i]) for i in draws], [0.025, 0.975])
    return Result(len(labels), headline, scores, 100 * float(low), 100 * float(high))


def told_apart(inside: np.ndarray, outside: np.ndarray, clean: str, *, resamples: int = 1_000) -> Result:
    """How well a model's confidence tells foreign texts from its own (Hendrycks and Gimpel, ICLR 2017): AUROC.

    The interval is the middle 95 % over bootstrap resamples of both sets.

    Args:
        inside, outside: of each example the probability of the model's answer.
        clean: the name of the set that the first are of.
    """
    random = np.random.default_rng(0)
    draws = ([random.choice(values, len(values)) for values in (inside, outside)] for _ in range(resamples))
    low, high = np.quantile([auroc(*draw) for draw in draws], [0.025, 0.975])
    scores = {"auroc": 100 * auroc(inside, outside)}
    return Result(len(outside), "auroc", scores, 100 * float(low), 100 * float(high), clean=clean)


def answered(scores: SquadScores) -> Result:
    """A question set's result: F1 with the interval of a mean, exact match; the drop from its own originals, if any."""
    half = 1.959963984540054 * 100 * float(scores.each_f1.std(ddof=1)) / scores.count**0.5 if scores.count > 1 else 0.0
    result = Result(
        scores.count,
        "f1",
        {"f1": scores.f1, "exact_match": scores.em},
        max(scores.f1 - half, 0.0),
        min(scores.f1 + half, 100.0),
    )
    if scores.original_f1 is not None and scores.original_em is not None:
        result.scores |= {"original_f1": scores.original_f1, "original_exact_match": scores.original_em}
        result.clean, result.drop = "its originals", scores.original_f1 - scores.f1
    return result


def compare(results: Mapping[str, Result], clean: Mapping[str, str]) -> None:
    """Fill in the drops from the clean counterparts, where a set is not already held against its own originals."""
    for name, counterpart in clean.items():
        if results[name].drop is None:
            results[name].clean, results[name].drop = counterpart, results[counterpart].value - results[name].value


def table(results: Mapping[str, Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text."""
    measures = list(dict.fromkeys(name for r in results.values() for name in r.scores if not name.startswith("orig")))
    informed = any(result.information is not None for result in results.values())
    header = ["set", "examples", *(name.replace("_", " ") for name in measures), "95 % interval", "drop", "from"]
    if informed:
        header += ["I(T;X) upper, nats", "I(T_k;Z) lower, nats"]
    rows = []
    for name, result in results.items():
        row = [name, str(result.count)]
        row += [f"{result.scores[measure]:.1f}" if measure in result.scores else "" for measure in measures]
        row.append(f"{result.low:.1f} to {result.high:.1f}")
        row += ["" if result.drop is None else f"{result.drop:.1f}", result.clean or ""]
        if informed:
            bounds = result.information
            row += ["", ""] if bounds is None else [f"{bounds.upper:.1f}", f"{bounds.lower:.3f}"]
        rows.append(row)
    return header, rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def as_markdown(title: str, results: Mapping[str, Result], notes: Sequence[str] = ()) -> str:
    """The table as a Markdown page."""
    return "\n".join([f"# {title}", "", *markdown_table(*table(results)), "", *notes, ""])


def as_json(results: Mapping[str, Result]) -> dict[str, Any]:
    """Everything in the table at full precision, by set. Accuracy also as a share under its usual keys."""
    content: dict[str, Any] = {}
    for name, result in results.items():
        row: dict[str, Any] = {"examples": result.count, "measure": result.measure}
        row |= {key: value / 100 for key, value in result.scores.items()}
        row |= {"low": result.low / 100, "high": result.high / 100}
        if result.clean is not None:
            row["clean"] = result.clean
        if result.drop is not None:
            row["drop"] = result.drop / 100
        if result.information is not None:
            row |= {f"information_{key}": value for key, value in vars(result.information).items() if value is not None}
        content[name] = row
    return content
