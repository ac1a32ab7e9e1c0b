"""Lower bounds with the concatenating MLP critic: InfoNCE, NWJ, Donsker-Varadhan and SMILE."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from infobert_fast import reference
from infobert_fast.functional import bounds
from infobert_fast.functional.critics.mlp import Precision, check_mlp
from infobert_fast.functional.implementation import Implementation, choose

__all__ = ["donsker_varadhan", "info_nce", "nwj", "smile"]


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
    critic = check_mlp(
        (local, global_, w1, b1, w2, b2),
        local_index,
        pair_index,
        chunk_size=chunk_size,
        pairs_of_ranks=pairs_of_ranks,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    if implementation == "reference":
        return reference.info_nce(
            *critic.operands, local_index=local_index, pair_index=pair_index, chunk_size=chunk_size
        )
    projected = critic.project()
    if chunk_size is not None and choose(implementation, projected.a, kernel=True, compiled=True) == "triton":
        from infobert_fast.kernels import chunk_bound

        if chunk_bound.is_short(chunk_size):
            bound: Tensor = chunk_bound.info_nce(*projected)
            return bound
    return bounds.info_nce(projected.scores(implementation, precision, softplus=True))


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
    include_pairs: bool = False,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """NWJ lower bound on I(X; Y) in nats, under the critic ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``.

    ``mean_i T(x_i, y_i) - mean_ij exp(T(x_j, y_i) - 1)``, the second mean over the pairings that are no pairs: those of
    a global row with the local rows of the pairs that do not use it. Tight at ``T = 1 + log p(y|x)/p(y)``, and
    unbiased; its variance grows with ``e^I``. A score above 88 overflows in float32: the bound is then -inf and its
    gradient not finite; :func:`donsker_varadhan` stays finite.

    Args:
        include_pairs: count the pairs among the pairings, as public code does: the estimate is then at most
            ``log P``. With ``pair_index`` a pair's global row meets the local rows of every pair that shares it.
        others: as in :func:`info_nce`, without softplus, chunks and ranks.

    Raises:
        As :func:`info_nce`; ValueError also where no pairing is left.

    Source: Nguyen, Wainwright and Jordan 2010; Poole et al. 2019, section 2.1.
    """
    critic = check_mlp(
        (local, global_, w1, b1, w2, b2),
        local_index,
        pair_index,
        include_pairs=include_pairs,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    if implementation == "reference":
        return reference.nwj(
            *critic.operands, local_index=local_index, pair_index=pair_index, include_pairs=include_pairs
        )
    return bounds.nwj(critic.project().scores(implementation, precision))


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
    include_pairs: bool = False,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """Donsker-Varadhan lower bound on I(X; Y) in nats, MINE's, under ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``.

    ``mean_i T(x_i, y_i) - log mean_ij exp T(x_j, y_i)``, the second mean over the pairings that are no pairs (see
    :func:`nwj`). It is a bound of the distributions; an estimate from samples lies above it on average, the logarithm
    of a mean being concave.

    Args:
        include_pairs: count the pairs among the pairings: the estimate is then at most ``log P``, and exactly 0 for a
            single pair.
        others, errors: as in :func:`nwj`.

    Source: Belghazi et al. 2018 (MINE); Donsker and Varadhan 1983.
    """
    critic = check_mlp(
        (local, global_, w1, b1, w2, b2),
        local_index,
        pair_index,
        include_pairs=include_pairs,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    if implementation == "reference":
        return reference.donsker_varadhan(
            *critic.operands, local_index=local_index, pair_index=pair_index, include_pairs=include_pairs
        )
    return bounds.donsker_varadhan(critic.project().scores(implementation, precision))


def smile(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    clip: float = 5.0,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    include_pairs: bool = False,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """SMILE's estimate of I(X; Y) in nats: :func:`donsker_varadhan` whose pairings' scores are clipped.

    ``mean_i T(x_i, y_i) - log mean_ij exp clip(T(x_j, y_i), -clip, clip)``. The clip bounds the variance of the mean of
    exponentials, which otherwise grows with ``e^I``, and biases it: the estimate is no bound where scores beyond the
    clip matter. A clipped score receives no gradient. The pairs' own scores are not clipped.

    Args:
        clip: in nats; Song and Ermon take 1, 5 and 10.
        others, errors: as in :func:`donsker_varadhan`.

    Source: Song and Ermon 2020, section 4.
    """
    critic = check_mlp(
        (local, global_, w1, b1, w2, b2),
        local_index,
        pair_index,
        include_pairs=include_pairs,
        clip=clip,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    if implementation == "reference":
        return reference.smile(
            *critic.operands, clip=clip, local_index=local_index, pair_index=pair_index, include_pairs=include_pairs
        )
    return bounds.donsker_varadhan(critic.project().scores(implementation, precision))
