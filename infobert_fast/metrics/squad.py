"""Exact match and F1 as SQuAD defines them, and the worst variant of each question as adversarial SQuAD does."""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["SquadScores", "exact_match", "normalize_answer", "original_id", "squad_scores", "token_f1"]

logger = logging.getLogger(__name__)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class SquadScores:
    """Percentages over ``count`` questions, and each question's own scores in [0, 1], in the order of ``ids``.

    Where questions have adversarial variants, a question's score is its worst variant's, the original among them, and
    ``original_em`` and ``original_f1`` are those of the originals alone; elsewhere both are None.
    """

    em: float
    f1: float
    count: int
    ids: tuple[str, ...]
    each_em: np.ndarray
    each_f1: np.ndarray
    original_em: float | None = None
    original_f1: float | None = None


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation (ASCII), articles and repeated white space; in that order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same after :func:`normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words, as bags; where one side has no word, whether both have none."""
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def original_id(question_id: str, ids: Iterable[str]) -> str:
    """The question of which this one is a variant: ids are ``<original>-<suffix>``, and the original is among them."""
    original = question_id.split("-")[0]
    return original if original in ids else question_id


def squad_scores(answers: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> SquadScores:
    """Score predictions against the right answers of each question.

    A question's score is the greatest over its answers. One without answers (SQuAD 2.0) is answered by the empty text;
    an answer of articles alone ("The"; one in SQuAD's dev set) is an answer like any other, for which the script of 1.1
    gives F1 0 whatever is predicted and that of 2.0 leaves it out.
    A question without a prediction scores 0, as with the official script, and is counted in the log. Ids
    ``<original>-<suffix>`` whose original is present are its adversarial variants (AddSent, AddOneSent): the question
    scores the worst of them and of the original, for exact match and F1 separately, as the authors' script does.

    Args:
        answers: right answers by question id.
        predictions: the answer text by question id, the official format.

    Raises:
        ValueError: where there are no questions.
    """
    if not answers:
        raise ValueError("`answers` is empty; give at least one question")
    if missing := [key for key in answers if key not in predictions]:
        logger.warning("%d of %d questions have no prediction and score 0: %s", len(missing), len(answers), missing[:3])
    worst: dict[str, tuple[float, float]] = {}
    originals: dict[str, tuple[float, float]] = {}
    for key, texts in answers.items():
        right = list(texts) or [""]
        given = predictions.get(key)
        em, f1 = (
            (0.0, 0.0)
            if given is None
            else (max(exact_match(given, text) for text in right), max(token_f1(given, text) for text in right))
        )
        original = original_id(key, answers)
        if original == key:
            originals[key] = em, f1
        before = worst.get(original, (1.0, 1.0))
        worst[original] = min(before[0], em), min(before[1], f1)
    scores = np.array(list(worst.values()))
    varied = len(originals) < len(answers)
    original_em, original_f1 = np.array(list(originals.values())).mean(0) * 100
    return SquadScores(
        em=float(scores[:, 0].mean() * 100),
        f1=float(scores[:, 1].mean() * 100),
        count=len(worst),
        ids=tuple(worst),
        each_em=scores[:, 0],
        each_f1=scores[:, 1],
        original_em=float(original_em) if varied else None,
        original_f1=float(original_f1) if varied else None,
    )
