"""Two models on the same examples: whether one is better, or only seems so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["mcnemar", "paired_interval"]


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value of McNemar's exact test: two-sided binomial, of the examples that one model alone gets right.

    Args:
        first, second: ``[n]``, whether each model is right.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def paired_interval(
    measure: Callable[[np.ndarray], float], count: int, *, resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """The middle 95 % of a difference over bootstrap resamples of the examples, the same ones for both models.

    Args:
        measure: the difference between the models on the examples of these numbers, ``[count]`` with repetitions.
        count: how many examples there are.
    """
    random = np.random.default_rng(seed)
    found = [measure(random.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
