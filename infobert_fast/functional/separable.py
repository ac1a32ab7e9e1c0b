"""InfoNCE with a separable critic, dot product, cosine or bilinear: CLIP's and SimCSE's objective in linear memory."""

from __future__ import annotations

from torch import Tensor

from infobert_fast import reference
from infobert_fast.functional import bounds
from infobert_fast.functional.critics.dot import SeparableCritic, Side, check_dot, project
from infobert_fast.functional.implementation import Implementation

__all__ = ["separable_info_nce"]


def separable_info_nce(
    local: Tensor,
    global_: Tensor,
    *,
    critic: SeparableCritic = "dot",
    weight: Tensor | None = None,
    scale: float | Tensor = 1.0,
    over: Side = "global_",
    symmetric: bool = False,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    labels: Tensor | None = None,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """InfoNCE lower bound on I(X; Y) in nats under a critic that is a product of a function of x and one of y.

    ``F(x, y) = scale <x, y>`` ("dot"), ``scale <x, y> / (|x| |y|)`` ("cosine") or ``scale x^T W y`` ("bilinear").
    The cosine of a zero row is 0, and its gradient too: it has no direction.

    ``I = mean_i F(x_i, y_i) - mean_i ( logsumexp_j F(x_i, y_j) - log N )`` over the N pairs, at most log N: each local
    row picks its global one among all. ``over="local"`` sums over the local rows instead, as :func:`info_nce` does, and
    ``symmetric`` takes the mean of both. ``log N - I`` is the cross-entropy that SimCSE (cosine) and CLIP (cosine,
    symmetric) minimise, N x N scores never being held: memory is O(N d) plus a block.

    Args:
        local: ``[M, x_dim]``.
        global_: ``[B, y_dim]``; for dot and cosine ``y_dim = x_dim``.
        weight: ``[x_dim, y_dim]``, W of the bilinear critic.
        scale: the inverse temperature: a number, or a tensor of one element, which then receives a gradient.
        over: the side whose rows a sum runs over, for each fixed row of the other.
        symmetric: average the bounds of both directions; ``over`` then has no effect.
        local_index, pair_index: int64 ``[P]``: pair p is ``(local[local_index[p]], global_[pair_index[p]])``, the
            identity where None. Rows of the fixed side that several pairs share are scored once, unless the call is
            symmetric or labelled.
        labels: int64 ``[P]``; pairs of equal label are no negatives of each other (duplicates in a batch, sentences of
            one class). Pair i then has n_i terms instead of N, and log n_i in place of log N.
        implementation: see :mod:`infobert_fast.functional`.
        validate: read and check index values too: on a CPU unless False, on a GPU only if True.

    Returns:
        A scalar, differentiable once in local, global_, weight and scale; float32 for half-precision inputs. Products
        are of the inputs' dtype (of autocast's, where that is on) accumulated in float32. NaN in gives NaN out.

    Raises:
        TypeError, ValueError, IndexError: for widths, counts, dtypes, devices or indices that do not fit, by name.

    Source: van den Oord et al. 2018; Radford et al. 2021 (CLIP); Gao et al. 2021 (SimCSE).
    """
    scale, pairs = check_dot(
        local, global_, critic, weight, scale, over, symmetric, local_index, pair_index, labels, True, None,
        implementation, validate,
    )  # fmt: skip
    if implementation == "reference":
        return reference.separable_info_nce(
            local,
            global_,
            critic=critic,
            weight=weight,
            scale=scale,
            over=over,
            symmetric=symmetric,
            local_index=local_index,
            pair_index=pair_index,
            labels=labels,
        )
    scores = project(local, global_, critic, weight, scale, over, symmetric, pairs, implementation)
    return bounds.info_nce(scores)
