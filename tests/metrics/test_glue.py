"""GLUE's measures against closed forms and values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infobert_fast.metrics.glue import METRICS, glue_scores, matthews_correlation, pearson, spearman

PREDICTED, RIGHT = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1, 1])  # TP 3, FP 1, FN 1, TN 1


def test_by_hand():
    scores = glue_scores(("accuracy", "f1", "matthews_correlation"), PREDICTED, RIGHT)
    # (3 * 1 - 1 * 1) / sqrt(4 * 4 * 2 * 2)
    assert scores == pytest.approx({"accuracy": 4 / 6, "f1": 6 / 8, "matthews_correlation": 2 / 8})


def test_constant_predictions_correlate_with_nothing():
    ones = np.ones(4)
    assert matthews_correlation(ones, np.array([1, 0, 1, 0])) == 0
    assert pearson(ones, np.arange(4.0)) == spearman(ones, np.arange(4.0)) == 0
    assert METRICS["f1"](np.zeros(3), np.zeros(3)) == 0


def test_spearman_shares_ranks_among_equals():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 1 - ties; Pearson of the ranks is 4.5 / sqrt(4.5 * 5)
    assert spearman(np.array([0.1, 7, 7, 9]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30))
def test_correlations(pairs):
    x, y = np.array(pairs, float).T
    if x.std() and y.std():
        assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
        assert spearman(np.exp(x / 10), y) == pytest.approx(spearman(x, y), abs=1e-12)  # order alone counts
        assert pearson(3 * x - 1, y) == pytest.approx(pearson(x, y), abs=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`predictions` has shape \(6,\) and `labels` \(2,\)"):
        glue_scores(("f1",), PREDICTED, RIGHT[:2])
    with pytest.raises(ValueError, match="at least one example"):
        glue_scores(("f1",), PREDICTED[:0], RIGHT[:0])
