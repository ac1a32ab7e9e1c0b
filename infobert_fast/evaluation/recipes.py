"""What an attack does to a word: other words, slips of the hand, other signs that look alike, other spaces.

A recipe is a function of a text, the place of one of its words and a number: at most so many changed texts. What is
drawn at random depends on the seed, the text and the place alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import regex

__all__ = ["RECIPES", "STOP_WORDS", "Recipe", "Text", "characters", "spacing", "substitutions", "unicode"]

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
# A word begins with a letter or digit; `\w` holds the marks and joiners that belong to the sign before them.
WORD = regex.compile(r"[\p{L}\p{N}_][\w\p{N}]*(?:['\u2019-][\p{L}\p{N}_][\w\p{N}]*)*")
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Cyrillic signs that most fonts draw as the Latin ones.
ALIKE = dict(
    zip(
        "aceijopsxydhqwlABCEHIJKMOPSTXY",
        "\u0430\u0441\u0435\u0456\u0458\u043e\u0440\u0455\u0445\u0443\u0501\u04bb\u051b\u051d\u04cf\u0410"
        "\u0412\u0421\u0415\u041d\u0406\u0408\u041a\u041c\u041e\u0420\u0405\u0422\u0425\u0423",
        strict=True,
    )
)
ZERO_WIDTH = "\u200b"
OVERRIDE, END = "\u202e", "\u202c"  # what stands between is shown from right to left
WIDE = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}


@dataclass(frozen=True)
class Text:
    """A text as its words and what stands before, between and after them."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]

    @classmethod
    def split(cls, text: str) -> Text:
        """``str`` of it is the text without the white space around it."""
        spans = [match.span() for match in WORD.finditer(text)]
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        gaps = tuple(text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2))
        return cls(tuple(text[start:end] for start, end in spans), gaps)

    def having(self, place: int, word: str) -> Text:
        """With another word at a place; the empty word deletes it and the space before it."""
        gaps = self.gaps
        if not word:
            gaps = (*gaps[:place], gaps[place].rstrip(), *gaps[place + 1 :])
        return Text((*self.words[:place], word, *self.words[place + 1 :]), gaps)

    def joined(self, place: int) -> Text | None:
        """Without the space behind a word; None where something else stands there, or nothing follows."""
        if place + 1 >= len(self.words) or not self.gaps[place + 1].isspace():
            return None
        return Text(self.words, (*self.gaps[: place + 1], "", *self.gaps[place + 2 :]))

    def __str__(self) -> str:
        return "".join(piece for pair in zip(self.gaps, (*self.words, ""), strict=True) for piece in pair).strip()


Recipe: TypeAlias = Callable[[Text, int, int], list[Text]]


def substitutions(
    neighbors: Mapping[str, Sequence[str]], tags: Callable[[list[str]], list[str]] | None = None
) -> Recipe:
    """Other words, in the word's own case: TextFooler's move (Jin et al., AAAI 2020). Stop words stay.

    Args:
        neighbors: substitutes by lower-case word, the nearest first.
        tags: parts of speech of a list of words: a substitute must keep its word's.
    """

    def changed(text: Text, place: int, count: int) -> list[Text]:
        word = text.words[place]
        lower = word.lower()
        if lower in STOP_WORDS:
            return []
        shape = str.upper if word.isupper() and len(word) > 1 else str.capitalize if word[:1].isupper() else str
        others = [shape(other) for other in neighbors.get(lower, ()) if other.lower() != lower]
        found = [text.having(place, other) for other in others[:count]]
        if tags is None:
            return found
        kind = tags(list(text.words))[place]
        return [one for one in found if tags(list(one.words))[place] == kind]

    return changed


def characters(seed: int = 0) -> Recipe:
    """One slip of the hand: two signs swapped, one left out, a neighbouring key besides or instead.

    The moves of DeepWordBug (Gao et al., 2018) and TextBugger (Li et al., NDSS 2019). A word's first sign stays, and
    two signs at least: words of one letter are left alone.
    """

    def moves(word: str) -> list[str]:
        signs = graphemes(word)
        found = []
        for i in range(1, len(signs)):
            before, sign, after = signs[:i], signs[i], signs[i + 1 :]
            if after and after[0] != sign:
                found.append([*before, after[0], sign, *after[1:]])
            if len(signs) > 2:
                found.append([*before, *after])
            near = _near(sign)
            found += [[*before, key, *after] for key in near]
            found += [[*before, sign, key, *after] for key in near or [sign]]
        return ["".join(signs) for signs in found]

    return _drawn(moves, seed)


def unicode(seed: int = 0) -> Recipe:
    """Other signs that look like the word's, or like none: what filters of bad words and prompts meet.

    Cyrillic for Latin letters, one of them or all; a sign of no width in one place or in all; the word written
    backwards between marks that show it forwards; full-width forms.
    """

    def moves(word: str) -> list[str]:
        signs = graphemes(word)
        alike = [ALIKE.get(sign, sign) for sign in signs]
        found = [
            "".join(alike),
            ZERO_WIDTH.join(signs),
            OVERRIDE + "".join(reversed(signs)) + END,
            "".join(WIDE.get(sign, sign) for sign in signs),
        ]
        found += ["".join([*signs[:i], alike[i], *signs[i + 1 :]]) for i in range(len(signs))]
        found += ["".join(signs[:i]) + ZERO_WIDTH + "".join(signs[i:]) for i in range(1, len(signs))]
        return found

    return _drawn(moves, seed)


def spacing(seed: int = 0) -> Recipe:
    """The word split in two, between any two signs, or joined with the next."""
    split = _drawn(lambda word: [" ".join(parts) for parts in _parted(graphemes(word))], seed)

    def changed(text: Text, place: int, count: int) -> list[Text]:
        joined = text.joined(place)
        found = [] if joined is None else [joined]
        return found + (split(text, place, count - len(found)) if count > len(found) else [])

    return changed


RECIPES: dict[str, Callable[[int], Recipe]] = {"characters": characters, "unicode": unicode, "spacing": spacing}


def graphemes(word: str) -> list[str]:
    """What a reader takes for one sign each: a letter with its marks, a joined emoji."""
    return regex.findall(r"\X", word)


def _parted(signs: list[str]) -> list[tuple[str, str]]:
    return [("".join(signs[:i]), "".join(signs[i:])) for i in range(1, len(signs))]


def _near(sign: str) -> list[str]:
    """The keys left and right of a letter, and those it touches above and below, in the letter's case."""
    for number, row in enumerate(KEYS):
        at = row.find(sign.lower()) if len(sign) == 1 else -1
        if at >= 0:
            found = [row[i] for i in (at - 1, at + 1) if 0 <= i < len(row)]
            found += [KEYS[number - 1][i] for i in (at, at + 1) if number > 0 and i < len(KEYS[number - 1])]
            found += [KEYS[number + 1][i] for i in (at - 1, at) if number < 2 and 0 <= i < len(KEYS[number + 1])]
            return [key.upper() if sign.isupper() else key for key in found]
    return []


def _drawn(moves: Callable[[str], list[str]], seed: int) -> Recipe:
    """At most so many different words of what the moves make of one, in their order."""

    def changed(text: Text, place: int, count: int) -> list[Text]:
        word = text.words[place]
        found = [other for other in dict.fromkeys(moves(word)) if other != word]
        if len(found) > count:
            chosen = random.Random(f"{seed} {place} {text}").sample(range(len(found)), count)
            found = [found[i] for i in sorted(chosen)]
        return [text.having(place, other) for other in found]

    return changed
