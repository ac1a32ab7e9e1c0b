"""An attack word by word, the most important first, as TextFooler's (Jin et al., AAAI 2020), on many texts at once.

The attack on one text is a generator: it yields what it wants to know, a batch of texts for the model or for a
similarity, and is sent the answer. :func:`run` asks on behalf of many at a time, so that every forward is a full batch;
the outcome of each is what it would have been alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from infobert_fast import checks
from infobert_fast.evaluation.recipes import Recipe, Text

__all__ = ["Answer", "Compare", "Limits", "Outcome", "Score", "attack", "run"]


class Score(NamedTuple):
    """A question: the model's probabilities, ``[len(texts), labels]``."""

    texts: list[str]


class Compare(NamedTuple):
    """A question: the similarity of each text with the original, ``[len(texts)]`` in [-1, 1]."""

    original: str
    texts: list[str]


Answer = np.ndarray


@dataclass(frozen=True)
class Limits:
    """What a change may be.

    Args:
        max_queries: texts that the model may be shown for one example; any number where None.
        max_candidates: changes of each recipe tried for a word.
        min_similarity: of the changed text with the original, where a similarity is at hand.
        max_changed: the share of a text's words that may be changed, rounded down to one word at least; all where None.

    Raises:
        ValueError: for a limit that allows nothing.
    """

    max_queries: int | None = None
    max_candidates: int = 50
    min_similarity: float | None = None
    max_changed: float | None = None

    def __post_init__(self) -> None:
        if self.max_queries is not None:
            checks.positive_integer("max_queries", self.max_queries, advice="leave it unset for no limit")
        checks.positive_integer("max_candidates", self.max_candidates)
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(f"`min_similarity` was {self.min_similarity}; a cosine lies in [-1, 1]")
        if self.max_changed is not None and not 0 < self.max_changed <= 1:
            raise ValueError(f"`max_changed` was {self.max_changed}; a share of the words lies in (0, 1]")


@dataclass(frozen=True)
class Outcome:
    """How the attack on one text ended.

    ``status`` is ``"misclassified"`` where the model was wrong to begin with and nothing was tried, ``"robust"`` where
    it held, ``"fooled"`` where ``text`` changes its answer to ``prediction``.
    """

    status: Literal["misclassified", "robust", "fooled"]
    text: str
    prediction: int
    queries: int
    changed: int
    words: int


def attack(
    text: str, label: int, recipes: Sequence[Recipe], limits: Limits, *, similar: bool = False
) -> Generator[Score | Compare, Answer, Outcome]:
    """One text's attack: change words, the most important first, until the model's answer is no longer ``label``.

    A word's importance is the fall of the label's probability when the word is deleted; where that changes the answer
    to another label, the rise of that label's is added. At each word in this order the changes that recipes and limits
    allow are tried: if any changes the answer, the one of the greatest similarity is taken (without ``similar``, the
    one that leaves the label the least probability); if none, the one that lowers the label's probability most is kept.

    Args:
        text: what is attacked; the driver knows what stands beside it (an NLI premise, say).
        label: the right answer, an index into the model's probabilities.
        recipes: what may be done to a word; see :mod:`infobert_fast.evaluation.recipes`. All are tried on each word.
        limits: see :class:`Limits`.
        similar: whether :class:`Compare` is answered.

    Only words that a recipe changes are deleted for their importance: the order among them is that of the full ranking.
    """
    original = Text.split(text)
    queries, count = 1, len(original.words)
    most = count if limits.max_changed is None else max(1, math.floor(limits.max_changed * count))

    def affordable(texts: list[str]) -> list[str]:
        return texts if limits.max_queries is None else texts[: max(0, limits.max_queries - queries)]

    def changes(now: Text, place: int) -> list[Text]:
        return [one for recipe in recipes for one in recipe(now, place, limits.max_candidates)]

    (clean,) = yield Score([text])
    prediction = int(clean.argmax())
    if prediction != label:
        return Outcome("misclassified", text, prediction, queries, 0, count)

    places = [place for place in range(count) if changes(original, place)]
    deletions = affordable([str(original.having(place, "")) for place in places])
    queries += len(deletions)
    importance = []
    if deletions:
        for without in (yield Score(deletions)):
            other = int(without.argmax())
            importance.append(clean[label] - without[label] + (without[other] - clean[other]) * (other != label))
    ranked = sorted(zip(places, importance, strict=False), key=lambda pair: -pair[1])

    now, best, changed = original, float(clean[label]), 0
    for place, _ in ranked:
        if changed == most:
            break
        tried = changes(now, place)
        likeness: Answer | None = None
        if similar and tried:
            likeness = yield Compare(text, [str(candidate) for candidate in tried])
            if limits.min_similarity is not None:
                kept = np.flatnonzero(likeness >= limits.min_similarity)
                tried, likeness = [tried[i] for i in kept], likeness[kept]
        texts = affordable([str(candidate) for candidate in tried])
        if not texts:
            continue
        queries += len(texts)
        scores = yield Score(texts)
        fooled = np.flatnonzero(scores.argmax(1) != label)
        if len(fooled):
            rank = scores[fooled, label] if likeness is None else -likeness[fooled]
            winner = int(fooled[rank.argmin()])
            return Outcome("fooled", texts[winner], int(scores[winner].argmax()), queries, changed + 1, count)
        winner = int(scores[:, label].argmin())
        if scores[winner, label] < best:
            now, best, changed = tried[winner], float(scores[winner, label]), changed + 1
    return Outcome("robust", text, label, queries, 0, count)


def run(
    attacks: Sequence[Generator[Score | Compare, Answer, Outcome]],
    score: Callable[[list[tuple[int, str]]], Answer],
    compare: Callable[[list[tuple[str, str]]], Answer] | None = None,
    *,
    concurrent: int = 256,
) -> Iterator[tuple[int, Outcome]]:
    """Drive attacks side by side; each one's number with its outcome, in the order in which they end.

    Args:
        attacks: from :func:`attack`.
        score: probabilities ``[n, labels]`` of ``(number of the attack, text)``.
        compare: similarities ``[n]`` of ``(original, text)``; needed where attacks are ``similar``.
        concurrent: attacks under way at a time; 1 is the attack as it is usually written.
    """
    checks.positive_integer("concurrent", concurrent)
    waiting = iter(enumerate(attacks))
    answers: dict[int, Answer | None] = {}
    while True:
        while len(answers) < concurrent and (item := next(waiting, None)) is not None:
            answers[item[0]] = None  # what a generator is first sent
        if not answers:
            return
        asked: dict[int, Score | Compare] = {}
        for number, answer in answers.items():
            try:
                asked[number] = attacks[number].send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                yield number, end.value
        questions = list(asked.items())
        scores = [(number, text) for number, ask in questions if isinstance(ask, Score) for text in ask.texts]
        pairs = [(ask.original, text) for _, ask in questions if isinstance(ask, Compare) for text in ask.texts]
        if pairs and compare is None:
            raise ValueError("`compare` was None, and an attack is `similar`: give what compares two texts")
        known, alike = (_answers(ask, texts) for ask, texts in ((score, scores), (compare, pairs)))
        answers = {
            number: np.array(list(itertools.islice(known if isinstance(ask, Score) else alike, len(ask.texts))))
            for number, ask in questions
        }


def _answers(ask: Callable[[Any], Answer] | None, questions: Sequence[Any]) -> Iterator[Any]:
    """One answer a question: a missing one would give each attack the next one's."""
    found = ask(questions) if ask is not None and questions else ()
    if len(found) != len(questions):
        raise ValueError(f"{len(questions)} texts were asked about, and {len(found)} answers came: give one each")
    return iter(found)
