"""Two models on the same sets: the difference of their headline measures, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infobert_fast.metrics.glue import METRICS
from infobert_fast.metrics.paired import mcnemar, paired_interval

__all__ = ["Answered", "Comparison", "compare_models", "comparison_json", "comparison_table"]


@dataclass(frozen=True)
class Answered:
    """What a model answered on one set: ``measure`` over ``values`` and ``labels``, and whether each is right.

    Of questions ``values`` is each one's F1, and there are no labels; of numbers nothing is right or wrong.
    """

    measure: str
    values: np.ndarray
    labels: np.ndarray | None
    right: np.ndarray | None

    def score(self, rows: np.ndarray) -> float:
        """The headline measure on these examples, in percent."""
        if self.labels is None:
            return 100 * float(self.values[rows].mean())
        return 100 * METRICS[self.measure](self.values[rows], self.labels[rows])


@dataclass(frozen=True)
class Comparison:
    """``difference`` is the second model's headline minus the first's, in points, with its 95 % interval.

    ``p`` is McNemar's, where answers are right or wrong.
    """

    measure: str
    count: int
    difference: float
    low: float
    high: float
    p: float | None

    @property
    def better(self) -> int | None:
        """0 or 1 for the model that is shown to be better; None where neither is.

        Accuracy is decided by McNemar's test at 5 %, other measures by the interval.
        """
        shown = self.p < 0.05 if self.measure == "accuracy" and self.p is not None else not self.low <= 0 <= self.high
        return (1 if self.difference > 0 else 0) if shown and self.difference else None


def compare_models(first: Mapping[str, Answered], second: Mapping[str, Answered]) -> dict[str, Comparison]:
    """The comparison on each set, by its name. Both models have answered the same examples in the same order."""
    found = {}
    for name, one in first.items():
        other, count = second[name], len(one.values)
        low, high = paired_interval(lambda rows: other.score(rows) - one.score(rows), count)  # noqa: B023
        p = None if one.right is None or other.right is None else mcnemar(one.right, other.right)
        difference = other.score(np.arange(count)) - one.score(np.arange(count))
        found[name] = Comparison(one.measure, count, difference, low, high, p)
    return found


def comparison_table(results: Mapping[str, Comparison], models: tuple[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text."""
    header = ["set", "examples", "measure", "second minus first", "95 % interval", "McNemar's p", "better"]
    rows = [
        [
            name,
            str(one.count),
            one.measure,
            f"{one.difference:+.1f}",
            f"{one.low:+.1f} to {one.high:+.1f}",
            "" if one.p is None else f"{one.p:.2g}",
            "not shown" if one.better is None else models[one.better],
        ]
        for name, one in results.items()
    ]
    return header, rows


def comparison_json(results: Mapping[str, Comparison], models: tuple[str, str]) -> dict[str, Any]:
    """Everything in the table at full precision, shares between -1 and 1."""
    return {
        name: {
            "measure": one.measure,
            "examples": one.count,
            "difference": one.difference / 100,
            "low": one.low / 100,
            "high": one.high / 100,
            "mcnemar_p": one.p,
            "better": None if one.better is None else models[one.better],
        }
        for name, one in results.items()
    }
