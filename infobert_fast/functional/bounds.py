"""Lower bounds on mutual information as functions of a critic's scores: any bound with any critic.

    >>> scores = functional.dot_scores(x, y, critic="cosine", scale=10.0, include_pairs=False)
    >>> functional.bounds.nwj(scores)  # nats

A critic (:func:`infobert_fast.functional.mlp_scores`, :func:`infobert_fast.functional.dot_scores`) streams the
log-sum-exp of its scores in linear memory. What acts within a sum, a pair that is left out or a score that is clipped,
acts there: subtracting it afterwards would cancel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from infobert_fast.functional.ranks import mean_over_ranks
from infobert_fast.kernels.pairs import Pairs

__all__ = ["Scores", "donsker_varadhan", "gather", "info_nce", "nwj"]


class Scores(NamedTuple):
    """Of one call, in nats."""

    positive: Tensor  # [P], the score of each pair
    lse: Tensor  # logsumexp_j u_ij of each fixed row, [B] where pairs share rows, else [P]
    pairs: Pairs
    row_index: Tensor | None  # [P], the fixed row of each pair; the identity where None
    number: int | Tensor  # of terms in each sum: equal for all pairs, or [P]
    reverse: Tensor | None = None  # [P], the log-sum-exp over the other side, where a bound averages both

    def of_pairs(self, values: Tensor) -> Tensor:
        """One value a row becomes one a pair."""
        return gather(values.unsqueeze(1), self.row_index).squeeze(1)


def gather(rows: Tensor, index: Tensor | None) -> Tensor:
    """``rows[index]``, all rows where None. Where rows repeat, an embedding's gradient is the same bits in every run;
    that of ``rows[index]`` is summed by atomics, on a CPU too, and was 40 times slower there.
    """
    return rows if index is None else F.embedding(index, rows)


def info_nce(scores: Scores) -> Tensor:
    """``mean_i [ u_ii - (logsumexp_j u_ij - log n_i) ]``, n_i being the number of terms; a lone term gives exactly 0.

    With chunks the mean over chunks, a ragged last one counting as much as the others; with ``reverse`` the mean of
    both directions. At most log n where the sums contain the pairs, and unbounded where they do not.

    Source: van den Oord et al. 2018.
    """
    positive, lse, pairs, _, number, reverse = scores
    # A lone term's logarithm is its positive but for its rounding: a factor 0 keeps the 0 exact and a NaN visible.
    alone = 1 if pairs.terms.clip is None and (pairs.terms.columns is None or pairs.terms.keep_pair) else 0
    if isinstance(number, int):
        terms = (positive - scores.of_pairs(lse - math.log(number))) * (number > alone)
        if pairs.of_ranks is None:
            return terms.mean()
        return mean_over_ranks(terms.sum() * (dist.get_world_size() / number))
    n = number.to(positive.dtype)
    if pairs.chunk_size is not None:
        terms = (positive - lse + n.log()) / n * (n > 1)
        return terms.sum() / math.ceil(pairs.count / pairs.chunk_size)
    terms = (positive - scores.of_pairs(lse) + n.log()) * (n > alone)
    if reverse is not None:
        terms = (terms + (positive - reverse + n.log()) * (n > alone)) / 2
    return terms.mean()


def nwj(scores: Scores) -> Tensor:
    """``mean_i u_ii - mean_ij exp(u_ij - 1)``, the second mean over all scores that the sums take.

    The exponential of a score above 88 overflows in float32: the bound is then -inf, and its gradient not finite.

    Source: Nguyen, Wainwright and Jordan 2010; Poole et al. 2019, section 2.1.
    """
    number, pairs = scores.number, scores.pairs.count
    of_a_pair = math.log(number) if isinstance(number, int) else _log_total(scores) - math.log(pairs)
    return scores.positive.mean() - scores.of_pairs(torch.exp(scores.lse - (of_a_pair + 1))).mean()


def donsker_varadhan(scores: Scores) -> Tensor:
    """``mean_i u_ii - log mean_ij exp u_ij``, the second mean over all scores that the sums take: MINE's bound, and
    SMILE's where they are clipped. A single pair that its own sum contains gives exactly 0 where no score is clipped.

    Source: Belghazi et al. 2018 (MINE); Donsker and Varadhan 1983; Song and Ermon 2020 (SMILE).
    """
    log_mean = torch.logsumexp(scores.of_pairs(scores.lse), 0) - _log_total(scores)
    bound, terms = scores.positive.mean() - log_mean, scores.pairs.terms
    exact = terms.columns is None and terms.clip is None
    return bound * (scores.pairs.count > 1) if exact else bound


def _log_total(scores: Scores) -> float | Tensor:
    """Log of how many scores all the sums take."""
    if isinstance(scores.number, int):
        return 2 * math.log(scores.number)
    return scores.number.sum().to(scores.lse.dtype).log()
