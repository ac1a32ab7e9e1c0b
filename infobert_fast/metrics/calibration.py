"""Whether a classifier's probabilities mean what they say, and whether they tell foreign texts from its own."""

from __future__ import annotations

import numpy as np

__all__ = ["auroc", "brier", "expected_calibration_error"]


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """``sum_b n_b / n |mean confidence in b - share right in b|`` over bins of equal width (Guo et al., ICML 2017).

    Args:
        confidence: ``[n]``, the probability of the class that was answered.
        right: ``[n]``, whether it was right.
        bins: how many parts [0, 1] is cut into; a part holds its upper edge.
    """
    part = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(part, confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """``mean_i sum_k (p_ik - [k = y_i])^2``, from 0 to 2 (Brier, 1950); of two classes twice the one-class form."""
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean())


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that a value of ``inside`` exceeds one of ``outside``, ties counting half."""
    order = np.sort(outside)
    below = np.searchsorted(order, inside, "left") + np.searchsorted(order, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))
