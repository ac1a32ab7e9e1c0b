"""How raw labels are recognised: the three relations of NLI and the ways in which corpora spell them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

LABELS = ("entailment", "neutral", "contradiction")
FEATURES = datasets.Features(
    premise=datasets.Value("string"),
    hypothesis=datasets.Value("string"),
    label=datasets.ClassLabel(names=list(LABELS)),
)

SPELLINGS = {
    **dict.fromkeys(("entailment", "entail", "e", "supports"), 0),
    **dict.fromkeys(("neutral", "n", "not enough info"), 1),
    **dict.fromkeys(("contradiction", "contradict", "c", "refutes"), 2),
}
UNDECIDED = "-"  # SNLI's mark for "the annotators did not agree"
UNLABELLED = (UNDECIDED, "-1", "-1.0")  # numbers: the hub's marks of test sets, where labels are classes


def fold(label: object) -> str:
    """The form in which raw labels are compared: text, whatever a file's loader made of it, in lower case."""
    return str(label).strip().lower()


def label_table(
    labels: Mapping[Any, str] | Sequence[str] | None,
    names: Sequence[str] | None,
    spellings: Mapping[str, int] = SPELLINGS,
) -> dict[str, int]:
    """Folded raw label -> index, for integers with or without ``names``, or words, by a task's ``spellings``.

    An explicit ``labels`` is the whole truth: nothing is guessed beside it.

    Raises ``ValueError`` where ``labels`` maps to a word that is none of the task's, or one raw label to two of them.
    """
    if labels is not None:
        table: dict[str, int] = {}
        for raw, word in labels.items() if isinstance(labels, Mapping) else enumerate(labels):
            if fold(word) not in spellings:
                raise ValueError(f"labels maps to {word!r}; allowed are {', '.join(spellings)}")
            index = spellings[fold(word)]
            if table.setdefault(fold(raw), index) != index:
                raise ValueError(f"labels maps {fold(raw)!r} twice, to two classes; upper and lower case are one")
    else:
        table = dict(spellings)
        if names is None:
            table.update({str(index): index for index in set(spellings.values())})
    if names is None:
        return table
    known = {str(index): table.get(fold(name), table.get(str(index))) for index, name in enumerate(names)}
    return {raw: index for raw, index in known.items() if index is not None}
