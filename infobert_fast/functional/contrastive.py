"""Lower bounds with the concatenating MLP critic: InfoNCE, NWJ and Donsker-Varadhan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import reference
from infobert_fast.functional import fused
from infobert_fast.functional.critic import check_critic
from infobert_fast.functional.implementation import Implementation, choose
from infobert_fast.functional.pairwise import Precision, gather
from infobert_fast.functional.ranks import mean_over_ranks

__all__ = ["donsker_varadhan", "info_nce", "nwj"]


def info_nce(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    chunk_size: int | None = None,
    pairs_of_ranks: Sequence[int] | None = None,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """InfoNCE lower bound on I(X; Y) in nats, under the critic ``F(x, y) = softplus(w2 . relu(W1 [x; y] + b1) + b2)``.

    For the n pairs of a chunk ``I = mean_i F(x_i, y_i) - mean_i ( logsumexp_j F(x_j, y_i) - log n )``, at most log n;
    the result is the mean over chunks, a ragged last one counting as much as the others. The sum runs over local
    samples for each fixed global one and contains the positive; a single pair gives exactly 0.

    Pair p is ``(local[local_index[p]], global_[pair_index[p]])``, the identity where an index is None; chunk k holds
    pairs ``k c .. (k+1) c - 1``. A shuffle is a permutation of the indices: no shuffled copy is made.

    Args:
        local: ``[M, x_dim]`` local features.
        global_: ``[B, y_dim]`` global features; rows may be distinct ones that several pairs share through
            ``pair_index``.
        w1, b1, w2, b2: the critic: ``[H, x_dim + y_dim]``, ``[H]``, ``[1, H]`` or ``[H]``, ``[1]``.
        local_index, pair_index: int64 ``[P]``.
        chunk_size: pairs per chunk; None makes every pair of the call a negative of every other.
        pairs_of_ranks: pairs of each rank, known on the host: every pair of all ranks is then a negative of every
            other. Each rank calls with its own pairs, perhaps none; the convention for values and gradients is that of
            :mod:`infobert_fast.functional.ranks`, and neither depends on how the pairs are split over ranks.
        implementation: see :mod:`infobert_fast.functional`.
        precision: ``"exact"`` (float32 arithmetic) or ``"fast"`` (half-precision tensor cores in both passes where
            a kernel has them, elsewhere the same as exact; docs/kernels.md has the errors).
        validate: read and check index values too: on a CPU unless False, on a GPU only if True (it waits for the
            device).

    Returns:
        A scalar, differentiable once in all six tensors; float32 for half-precision inputs. NaN in gives NaN out.

    Raises:
        TypeError, ValueError, IndexError: for counts, widths, dtypes, devices or indices that do not fit, by name.

    Source: InfoBERT, section 3.3; van den Oord et al. 2018 for the bound.
    """
    if pairs_of_ranks is not None:
        if chunk_size is not None or implementation == "reference":
            raise ValueError(
                f"`pairs_of_ranks` was given with `chunk_size` {chunk_size} and `implementation` {implementation!r}; "
                f"chunks, and the specification, know one rank: leave `pairs_of_ranks` out"
            )
        if sum(pairs_of_ranks) == 0:
            raise ValueError(
                "`pairs_of_ranks` is zero for every rank; an estimate needs at least one pair: skip the call on all"
            )
    critic = check_critic(
        local,
        global_,
        w1,
        b1,
        w2,
        b2,
        local_index,
        pair_index,
        chunk_size=chunk_size,
        implementation=implementation,
        precision=precision,
        validate=validate,
        may_be_empty=pairs_of_ranks is not None,
    )
    if implementation == "reference":
        return reference.info_nce(
            *critic.operands, local_index=local_index, pair_index=pair_index, chunk_size=chunk_size
        )
    pairs = critic.pairs if pairs_of_ranks is None else sum(pairs_of_ranks)
    projected = critic.project()
    kernels = choose(implementation, projected.a, kernel=True, compiled=True) == "triton"
    if kernels and pairs and chunk_size is not None and fused.is_short(chunk_size):
        return fused.info_nce(*projected, chunk_size)
    score, lse = projected.scores(chunk_size, implementation, precision, pairs_of_ranks)
    # Softplus turns linear above its threshold; at the default, 20, float64 would lose seven digits.
    positive = F.softplus(score, threshold=50.0)
    # exp(softplus(u)) = 1 + e^u, so logsumexp_j softplus(u_ij) = log(n + sum_j e^u_ij): no softplus per pair.
    # A lone pair's two terms are equal but for their rounding: a factor 0 keeps the 0 exact and a NaN visible.
    if chunk_size is None:
        negative = torch.logaddexp(lse, torch.full_like(lse, math.log(pairs))) - math.log(pairs)
        terms = (positive - _of_pairs(negative, pair_index)) * (pairs > 1)
        if pairs_of_ranks is None:
            return terms.mean()
        return mean_over_ranks(terms.sum() * (dist.get_world_size() / pairs))
    n = torch.full_like(lse, min(chunk_size, pairs))
    if ragged := pairs % chunk_size:
        n[-ragged:] = ragged
    terms = (positive - torch.logaddexp(lse, n.log()) + n.log()) / n * (n > 1)
    return terms.sum() / math.ceil(pairs / chunk_size)


def nwj(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """NWJ lower bound on I(X; Y) in nats, under the critic ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``.

    ``mean_i T(x_i, y_i) - mean_ij exp(T(x_j, y_i) - 1)`` over all P x P pairings; tight at ``T = 1 + log p(y|x)/p(y)``.
    An estimate from samples is unbiased but for the P pairings that are pairs, and its variance grows with
    ``e^I``.

    Arguments, result and errors as in :func:`info_nce`, without softplus and chunks.

    Source: Nguyen, Wainwright and Jordan 2010; Poole et al. 2019, section 2.1.
    """
    critic = check_critic(
        local,
        global_,
        w1,
        b1,
        w2,
        b2,
        local_index,
        pair_index,
        chunk_size=None,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    if implementation == "reference":
        return reference.nwj(*critic.operands, local_index=local_index, pair_index=pair_index)
    score, lse = critic.project().scores(None, implementation, precision)
    return score.mean() - _of_pairs(torch.exp(lse - (math.log(critic.pairs) + 1)), pair_index).mean()


def donsker_varadhan(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """Donsker-Varadhan lower bound on I(X; Y) in nats, MINE's, under ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``.

    ``mean_i T(x_i, y_i) - log mean_ij exp T(x_j, y_i)`` over all P x P pairings. It is a bound of the distributions;
    an estimate from samples lies above it on average, the logarithm of a mean being concave. At most log P, since the
    pairings contain the pairs; a single pair gives exactly 0.

    Arguments, result and errors as in :func:`info_nce`, without softplus and chunks.

    Source: Belghazi et al. 2018 (MINE); Donsker and Varadhan 1983.
    """
    critic = check_critic(
        local,
        global_,
        w1,
        b1,
        w2,
        b2,
        local_index,
        pair_index,
        chunk_size=None,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    if implementation == "reference":
        return reference.donsker_varadhan(*critic.operands, local_index=local_index, pair_index=pair_index)
    score, lse = critic.project().scores(None, implementation, precision)
    log_mean = torch.logsumexp(_of_pairs(lse, pair_index), 0) - 2 * math.log(critic.pairs)
    return (score.mean() - log_mean) * (critic.pairs > 1)


def _of_pairs(values: Tensor, pair_index: Tensor | None) -> Tensor:
    """One value a row of global_ becomes one a pair."""
    return gather(values.unsqueeze(1), pair_index).squeeze(1)
