"""From the logits of windows to the answer of each question: its best spans, and whether it has an answer at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from infobert_fast import checks

__all__ = ["AnswerReader", "Answers", "Span"]


@dataclass(frozen=True)
class Span:
    """A candidate answer; ``score`` is the sum of its start and end logit, ``probability`` a softmax over the list."""

    text: str
    score: float
    probability: float


@dataclass(frozen=True)
class Answers:
    """By question id: the answer's text (the official format), the best spans, and null score minus best span's score.

    ``null_odds`` is what ``null_threshold`` is compared with: above it the answer is the empty text.
    """

    predictions: dict[str, str]
    n_best: dict[str, list[Span]]
    null_odds: dict[str, float]


@dataclass(frozen=True)
class AnswerReader:
    """How answers are read.

    Args:
        n_best: spans kept for each question, and start and end positions tried in each window.
        max_answer_length: longest answer in tokens.
        null_threshold: the answer is empty where the null score (start plus end logit of the first token, the least
            over the question's windows) exceeds the best span's by more than this. None answers always, as SQuAD 1.1
            wants; SQuAD 2.0's default is 0.

    Raises:
        ValueError: for a value outside what it may be.
    """

    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float | None = None

    def __post_init__(self) -> None:
        checks.positive_integer("n_best", self.n_best)
        checks.positive_integer("max_answer_length", self.max_answer_length)
        if self.null_threshold is not None:
            checks.number("null_threshold", self.null_threshold)

    def read(
        self,
        questions: datasets.Dataset,
        windows: datasets.Dataset,
        start_logits: Sequence[np.ndarray] | np.ndarray,
        end_logits: Sequence[np.ndarray] | np.ndarray,
    ) -> Answers:
        """Read the answers of all questions.

        Args:
            questions: as :func:`infobert_fast.data.qa.load_questions` gives them.
            windows: theirs, of :func:`infobert_fast.data.qa.windows`.
            start_logits, end_logits: a row a window, ``[length]`` or padded on the right.

        Raises:
            ValueError: where logits and windows differ in number.
        """
        if not len(start_logits) == len(end_logits) == len(windows):
            raise ValueError(
                f"there are {len(windows)} windows, {len(start_logits)} rows of `start_logits` and {len(end_logits)} "
                "of `end_logits`; give a row a window, in their order"
            )
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(len(questions))]
        null = np.full(len(questions), np.inf)
        columns = (windows[name] for name in ("example", "starts", "ends"))
        for example, starts, ends, start, end in zip(*columns, start_logits, end_logits, strict=True):
            null[example] = min(null[example], float(start[0]) + float(end[0]))
            found[example] += self._spans(np.array(starts), np.array(ends), np.asarray(start), np.asarray(end))
        predictions, n_best, odds = {}, {}, {}
        for key, context, spans, nothing in zip(questions["id"], questions["context"], found, null, strict=True):
            best = _best(context, spans, self.n_best)
            n_best[key] = best
            odds[key] = float(nothing) - best[0].score
            empty = self.null_threshold is not None and odds[key] > self.null_threshold
            predictions[key] = "" if empty else best[0].text
        return Answers(predictions, n_best, odds)

    def _spans(
        self, starts: np.ndarray, ends: np.ndarray, start: np.ndarray, end: np.ndarray
    ) -> list[tuple[float, int, int]]:
        """The window's best spans: score, first and last character."""
        inside = np.flatnonzero(starts >= 0)
        first = inside[np.argsort(-start[inside], kind="stable")[: self.n_best]]
        last = inside[np.argsort(-end[inside], kind="stable")[: self.n_best]]
        length = last[None, :] - first[:, None] + 1
        rows, columns = np.nonzero((length >= 1) & (length <= self.max_answer_length))
        scores = start[first[rows]].astype(float) + end[last[columns]]
        order = np.argsort(-scores, kind="stable")[: self.n_best]
        rows, columns = first[rows[order]], last[columns[order]]
        return list(zip(scores[order].tolist(), starts[rows].tolist(), ends[columns].tolist(), strict=True))


def _best(context: str, spans: list[tuple[float, int, int]], count: int) -> list[Span]:
    """The best ``count`` different texts; the empty one where there is no span at all."""
    kept: dict[str, float] = {}
    for score, start, end in sorted(spans, key=lambda span: -span[0]):
        kept.setdefault(context[start:end], score)
        if len(kept) == count:
            break
    if not kept:
        return [Span("", 0.0, 1.0)]
    scores = np.array(list(kept.values()))
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return [Span(text, score, float(p)) for (text, score), p in zip(kept.items(), weights, strict=True)]
