"""TextFooler's word-substitution attack (Jin et al., AAAI 2020), on many texts at once.

The attack on one text is a generator: it yields what it wants to know, a batch of texts for the model or for a
similarity, and is sent the answer. :func:`run` asks on behalf of many at a time, so that every forward is a full batch;
the outcome of each is what it would have been alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from infobert_fast import checks

__all__ = ["STOP_WORDS", "Answer", "Compare", "Limits", "Outcome", "Score", "attack", "run"]

# Words that carry no meaning of their own are never substituted.
STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between both
    but by can cannot could did do does doing don down during each few for from further had has have having he her
    here hers herself him himself his how i if in into is it its itself just may me might more most must my myself
    no nor not now of off on once only or other our ours ourselves out over own same shall she should so some such
    than that the their theirs them themselves then there these they this those through to too under until up upon
    very was we were what when where which while who whom whose why will with without would you your yours
    yourself yourselves
    """.split()  # noqa: SIM905 (shorter to read)
)
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


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
    """What a substitution may be.

    Args:
        max_queries: texts that the model may be shown for one example; any number where None.
        max_candidates: substitutes tried for a word.
        min_similarity: of the changed text with the original, where a similarity is at hand.
        tags: parts of speech of a list of words, where a tagger is at hand: a substitute must keep its word's.

    Raises:
        ValueError: for a limit that allows nothing.
    """

    max_queries: int | None = None
    max_candidates: int = 50
    min_similarity: float | None = None
    tags: Callable[[list[str]], list[str]] | None = None

    def __post_init__(self) -> None:
        if self.max_queries is not None:
            checks.positive_integer("max_queries", self.max_queries, advice="leave it unset for no limit")
        checks.positive_integer("max_candidates", self.max_candidates)
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(f"`min_similarity` was {self.min_similarity}; a cosine lies in [-1, 1]")


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


@dataclass(frozen=True)
class _Text:
    """A text as its words and what stands before, between and after them."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @classmethod
    def split(cls, text: str) -> _Text:
        spans = [match.span() for match in WORD.finditer(text)]
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        gaps = tuple(text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2))
        return cls(tuple(text[start:end] for start, end in spans), gaps)

    def having(self, place: int, word: str) -> _Text:
        """With another word at a place; the empty word deletes it and the space before it."""
        gaps = self.gaps
        if not word:
            gaps = (*gaps[:place], gaps[place].rstrip(), *gaps[place + 1 :])
        return _Text((*self.words[:place], word, *self.words[place + 1 :]), gaps)

    def __str__(self) -> str:
        return "".join(piece for pair in zip(self.gaps, (*self.words, ""), strict=True) for piece in pair).strip()


def attack(
    text: str, label: int, neighbors: Mapping[str, Sequence[str]], limits: Limits, *, similar: bool = False
) -> Generator[Score | Compare, Answer, Outcome]:
    """One text's attack: substitute words, the most important first, until the model's answer is no longer ``label``.

    A word's importance is the fall of the label's probability when the word is deleted; where that changes the answer
    to another label, the rise of that label's is added. At each word in this order the substitutes that the limits
    allow are tried: if any changes the answer, the one of the greatest similarity is taken (without ``similar``, the
    one that leaves the label the least probability); if none, the one that lowers the label's probability most is kept.

    Args:
        text: what is attacked; the driver knows what stands beside it (an NLI premise, say).
        label: the right answer, an index into the model's probabilities.
        neighbors: substitutes by lower-case word, the nearest first.
        limits: see :class:`Limits`.
        similar: whether :class:`Compare` is answered.

    Only words with substitutes are deleted for their importance: the order among them is that of the full ranking.
    """
    original = _Text.split(text)
    queries, count = 1, len(original.words)

    def affordable(texts: list[str]) -> list[str]:
        return texts if limits.max_queries is None else texts[: max(0, limits.max_queries - queries)]

    (clean,) = yield Score([text])
    prediction = int(clean.argmax())
    if prediction != label:
        return Outcome("misclassified", text, prediction, queries, 0, count)

    places = [i for i, word in enumerate(original.words) if _substitutes(word, neighbors)]
    deletions = affordable([str(original.having(i, "")) for i in places])
    queries += len(deletions)
    importance = []
    if deletions:
        for without in (yield Score(deletions)):
            other = int(without.argmax())
            importance.append(clean[label] - without[label] + (without[other] - clean[other]) * (other != label))
    ranked = sorted(zip(places, importance, strict=False), key=lambda pair: -pair[1])

    now, best, changed = original, float(clean[label]), 0
    for place, _ in ranked:
        words = _substitutes(now.words[place], neighbors)[: limits.max_candidates]
        if limits.tags is not None:
            words = _of_the_same_kind(now.words, place, words, limits.tags)
        tried = [now.having(place, word) for word in words]
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


def _substitutes(word: str, neighbors: Mapping[str, Sequence[str]]) -> list[str]:
    """In the word's own case."""
    lower = word.lower()
    if lower in STOP_WORDS:
        return []
    shape = str.upper if word.isupper() and len(word) > 1 else str.capitalize if word[:1].isupper() else str
    return [shape(other) for other in neighbors.get(lower, ()) if other.lower() != lower]


def _of_the_same_kind(
    words: Sequence[str], place: int, substitutes: list[str], tags: Callable[[list[str]], list[str]]
) -> list[str]:
    kind = tags(list(words))[place]
    return [word for word in substitutes if tags([*words[:place], word, *words[place + 1 :]])[place] == kind]
