"""GLUE's measures: accuracy, F1, Matthews correlation, Pearson and Spearman correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["METRICS", "accuracy", "f1", "glue_scores", "matthews_correlation", "pearson", "spearman"]


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of predictions that are right."""
    return float((predictions == labels).mean())


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """``2 TP / (2 TP + FP + FN)`` of class 1; 0 where nothing is, or is taken for, class 1."""
    positive = int(((predictions == 1) & (labels == 1)).sum())
    total = int((predictions == 1).sum() + (labels == 1).sum())
    return 2 * positive / total if total else 0.0


def matthews_correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of two binary variables; 0 where one of them is constant, as GLUE has it."""
    return pearson((predictions == 1).astype(float), (labels == 1).astype(float))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """``cov(x, y) / (std(x) std(y))``; 0 where one of them is constant."""
    x = predictions.astype(np.float64) - predictions.astype(np.float64).mean()
    y = labels.astype(np.float64) - labels.astype(np.float64).mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else 0.0


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[group]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function for function in (accuracy, f1, matthews_correlation, pearson, spearman)
}


def glue_scores(metrics: Sequence[str], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The named measures of predicted classes (or numbers) against the right ones.

    Raises ``ValueError`` where the two differ in number or are empty.
    """
    if predictions.shape != labels.shape or not predictions.size:
        raise ValueError(
            f"`predictions` has shape {predictions.shape} and `labels` {labels.shape}; they must agree and hold at "
            "least one example"
        )
    return {name: METRICS[name](predictions, labels) for name in metrics}
