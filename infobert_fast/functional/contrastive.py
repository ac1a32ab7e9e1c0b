"""InfoNCE with the concatenating MLP critic, and the pairwise log-sum-exp under it."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional import fused, streaming
from infobert_fast.functional.implementation import IMPLEMENTATIONS, Implementation, choose

__all__ = ["PRECISIONS", "Precision", "info_nce", "pairwise_mlp_logsumexp"]

Precision = Literal["exact", "fast"]
PRECISIONS: tuple[Precision, ...] = ("exact", "fast")


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
        implementation: see :mod:`infobert_fast.functional`.
        precision: ``"exact"`` (float32 arithmetic) or ``"fast"`` (half-precision tensor cores where a kernel has them;
            elsewhere the same as exact).
        validate: read and check index values too: on a CPU unless False, on a GPU only if True (it waits for the
            device).

    Returns:
        A scalar, differentiable once in all six tensors; float32 for half-precision inputs. NaN in gives NaN out.

    Raises:
        TypeError, ValueError, IndexError: for counts, widths, dtypes, devices or indices that do not fit, by name.

    Source: InfoBERT, section 3.3; van den Oord et al. 2018 for the bound.
    """
    checks.choice("implementation", implementation, IMPLEMENTATIONS)
    checks.choice("precision", precision, PRECISIONS)
    local, global_, w1, b1, w2, b2 = _resolve_autocast(local, global_, w1, b1, w2.reshape(-1), b2.reshape(-1))
    checks.matrix("local", local)
    checks.matrix("global_", global_, like=("local", local))
    checks.matrix("w1", w1, width=local.shape[1] + global_.shape[1], like=("local", local))
    for name, value, size in (("b1", b1, w1.shape[0]), ("w2", w2, w1.shape[0]), ("b2", b2, 1)):
        checks.vector(name, value, size, like=("local", local))
    pairs, others = _count_pairs(local, global_, local_index, pair_index, chunk_size, ("local", "global_"), validate)
    if pairs != others:
        raise ValueError(
            f"`{'local' if local_index is None else 'local_index'}` gives {pairs} pairs and "
            f"`{'global_' if pair_index is None else 'pair_index'}` {others}; the counts must agree: pass `pair_index` "
            f"to say which row of `global_` each pair uses"
        )
    if implementation == "reference":
        return reference.info_nce(
            local, global_, w1, b1, w2, b2, local_index=local_index, pair_index=pair_index, chunk_size=chunk_size
        )

    with torch.autocast(local.device.type, enabled=False):
        # W1 [x; y] = Wx x + Wy y: two GEMMs instead of an N x N x 2d concatenation. Gather before the projection unless
        # rows repeat: P rows of x_dim are then fewer than M.
        wx, wy = w1.split((local.shape[1], global_.shape[1]), dim=1)
        if local_index is not None and pairs <= local.shape[0]:
            local, local_index = _gather(local, local_index), None
        # In float32 at least: a rounding of a or b is common to all pairs of its row and does not average out as one
        # of each pair's sum would; and the gradients of a row's many uses must not be summed in half precision.
        wide = torch.promote_types(local.dtype, torch.float32)
        local, global_, wx, wy, b1, w2, b2 = (t.to(wide) for t in (local, global_, wx, wy, b1, w2, b2))
        a, b = F.linear(local, wx), F.linear(global_, wy, b1)
        lse = pairwise_mlp_logsumexp(
            a,
            b,
            w2,
            b2,
            local_index=local_index,
            pair_index=pair_index,
            chunk_size=chunk_size,
            implementation=implementation,
            precision=precision,
            validate=False,
        )
        a_pairs, b_pairs = _gather(a, local_index), _gather(b, pair_index)
        # Softplus turns linear above its threshold; at the default, 20, float64 would lose seven digits.
        positive = F.softplus(torch.relu(a_pairs + b_pairs) @ w2 + b2, threshold=50.0)
        # exp(softplus(u)) = 1 + e^u, so logsumexp_j softplus(u_ij) = log(n + sum_j e^u_ij): no softplus per pair.
        # A lone pair's two terms are equal but for their rounding: a factor 0 keeps the 0 exact and a NaN visible.
        if chunk_size is None:
            negative = torch.logaddexp(lse, torch.full_like(lse, math.log(pairs))) - math.log(pairs)
            return (positive - _gather(negative.unsqueeze(1), pair_index).squeeze(1)).mean() * (pairs > 1)
        n = torch.full_like(lse, min(chunk_size, pairs))
        if ragged := pairs % chunk_size:
            n[-ragged:] = ragged
        terms = (positive - torch.logaddexp(lse, n.log()) + n.log()) / n * (n > 1)
        return terms.sum() / math.ceil(pairs / chunk_size)


def pairwise_mlp_logsumexp(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """``lse_i = logsumexp_j ( w2 . relu(a_j + b_i) + b2 )``: what every bound with this critic rests on.

    Args:
        a: ``[M, H]``, the projected local rows ``Wx x``; j runs over ``local_index`` (identity where None).
        b: ``[B, H]``, the projected global rows ``Wy y + b1``.
        w2, b2: ``[H]`` or ``[1, H]``, and ``[1]``.
        chunk_size: None gives one value for each **row of b** against all pairs: ``[B]``. Otherwise one value for each
            **pair** against its own chunk: ``[P]``, pair p being ``(a[local_index[p]], b[pair_index[p]])``.
        local_index, pair_index, implementation, precision, validate: as in :func:`info_nce`.

    Returns:
        ``[B]`` or ``[P]`` in nats, float32 for half-precision inputs; differentiable once in a, b, w2 and b2.

    Raises:
        As :func:`info_nce`.
    """
    w2, b2 = w2.reshape(-1), b2.reshape(-1)
    checks.choice("precision", precision, PRECISIONS)
    checks.matrix("a", a)
    checks.matrix("b", b, width=a.shape[1], like=("a", a))
    checks.vector("w2", w2, a.shape[1], like=("a", a))
    checks.vector("b2", b2, 1, like=("a", a))
    pairs, others = _count_pairs(a, b, local_index, pair_index, chunk_size, ("a", "b"), validate)
    if chunk_size is not None and pairs != others:
        raise ValueError(f"`a` gives {pairs} pairs and `b` {others}; chunks need one of each: pass `pair_index`")
    chosen = choose(implementation, a, kernel=True)
    if chosen == "reference":
        return reference.pairwise_mlp_logsumexp(
            a, b, w2, b2, local_index=local_index, pair_index=pair_index, chunk_size=chunk_size
        )

    with torch.autocast(a.device.type, enabled=False):
        if chosen == "triton":
            return fused.pairwise_mlp_logsumexp(a, b, w2, b2, local_index, pair_index, chunk_size, precision)
        a_pairs = _gather(a, local_index)
        if chunk_size is None:
            return streaming.pairwise_mlp_logsumexp(a_pairs.unsqueeze(0), b.unsqueeze(0), w2, b2).squeeze(0)
        b_pairs = _gather(b, pair_index)
        whole = pairs - pairs % chunk_size
        parts = []
        for start, stop, size in ((0, whole, chunk_size), (whole, pairs, pairs - whole)):
            if start < stop:
                a_chunks, b_chunks = (rows[start:stop].unflatten(0, (-1, size)) for rows in (a_pairs, b_pairs))
                parts.append(streaming.pairwise_mlp_logsumexp(a_chunks, b_chunks, w2, b2).flatten())
        return torch.cat(parts)


def _gather(rows: Tensor, index: Tensor | None) -> Tensor:
    """``rows[index]``, all rows where None. Where rows repeat, an embedding's gradient is the same bits in every run;
    that of ``rows[index]`` is summed by atomics, on a CPU too, and was 40 times slower there.
    """
    return rows if index is None else F.embedding(index, rows)


def _resolve_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast bring all to float32, which is what is computed in anyway; elsewhere mixed dtypes are refused."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.float() if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def _count_pairs(
    local: Tensor,
    global_: Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    chunk_size: int | None,
    names: tuple[str, str],
    validate: bool | None,
) -> tuple[int, int]:
    """Check both indices against the rows they address; return how many pairs each side gives."""
    checks.positive_integer(
        "chunk_size", chunk_size, optional=True, advice="None makes all pairs negatives of each other"
    )
    counts = []
    for rows, index, row_name, index_name in (
        (local, local_index, names[0], "local_index"),
        (global_, pair_index, names[1], "pair_index"),
    ):
        if index is not None:
            checks.index(index_name, index, rows.shape[0], row_name, rows.device, validate=validate)
        counts.append(rows.shape[0] if index is None else index.shape[0])
    return counts[0], counts[1]
