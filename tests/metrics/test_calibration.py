"""Calibration and ranking by hand, and paired tests against scipy's."""

import numpy as np
import pytest
from scipy import stats

from infobert_fast.metrics.calibration import auroc, brier, expected_calibration_error
from infobert_fast.metrics.paired import mcnemar, paired_interval


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.85, 0.55, 0.6, 0.1])
    right = np.array([True, False, True, False, False])
    # Ten bins of a tenth; 0.55 and 0.6 share one, whose upper edge is 0.6.
    gaps = [abs(0.95 - 1), 0.85, abs(0.55 + 0.6 - 1), 0.1]
    assert expected_calibration_error(confidence, right, 10) == pytest.approx(sum(gaps) / 5)
    assert expected_calibration_error(confidence, right, 1) == pytest.approx(abs(confidence.sum() - 2) / 5)


def test_confidence_that_is_right_as_often_as_it_says_has_no_error():
    assert expected_calibration_error(np.full(4, 0.75), np.array([1, 1, 1, 0], dtype=bool)) == 0
    assert expected_calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1  # both edges have a bin


def test_brier_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    assert brier(probabilities, np.array([0, 2])) == pytest.approx((0.09 + 0.04 + 0.01 + 2) / 2)
    two = np.array([[0.3, 0.7], [0.6, 0.4]])
    labels = np.array([1, 1])
    assert brier(two, labels) == pytest.approx(2 * ((two[:, 1] - labels) ** 2).mean())  # scikit-learn's, twice


def test_auroc_is_mann_whitneys_share():
    random = np.random.default_rng(0)
    inside, outside = random.integers(0, 6, 40) / 5, random.integers(0, 5, 30) / 5  # with ties
    statistic = stats.mannwhitneyu(inside, outside).statistic
    assert auroc(inside, outside) == pytest.approx(statistic / (40 * 30))
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.5


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 12), (40, 25), (5, 5), (0, 9)])
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    first = np.array([True] * (7 + only_first) + [False] * (only_second + 4))
    second = np.array([True] * 7 + [False] * only_first + [True] * only_second + [False] * 4)
    n = only_first + only_second
    tail = stats.binom.cdf(min(only_first, only_second), n, 0.5)
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first) == pytest.approx(mcnemar(first, second))


def test_mcnemars_published_example():
    """Agresti's approval ratings, 86 against 150: statsmodels.stats.contingency_tables.mcnemar(exact=True)."""
    first = np.array([True] * 86 + [False] * 150)
    assert mcnemar(first, ~first) == pytest.approx(3.716e-05, rel=1e-3)


def test_the_paired_interval_is_scipys():
    random = np.random.default_rng(1)
    first = random.random(600) < 0.6
    second = np.where(random.random(600) < 0.8, first, random.random(600) < 0.8)

    def difference(a, b, axis=-1):
        return b.mean(axis) - a.mean(axis)

    found = paired_interval(lambda rows: difference(first[rows], second[rows]), 600, resamples=4_000)
    expected = stats.bootstrap(
        (first.astype(float), second.astype(float)),
        difference,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    # Both are quantiles of means over 600: a step of one example is 1 / 600.
    assert found == pytest.approx((expected.low, expected.high), abs=1 / 600 + 1e-9)
    assert found == paired_interval(lambda rows: difference(first[rows], second[rows]), 600, resamples=4_000)
    # Apart, the models would seem less certain: the pairing matters.
    apart = 1.96 * np.sqrt(first.var() / 600 + second.var() / 600)
    assert found[1] - found[0] < 2 * apart * 0.8
