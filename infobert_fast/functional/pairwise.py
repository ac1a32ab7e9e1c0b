"""The primitive of every bound with the concatenating MLP critic: log-sum-exp of its scores over local rows."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional import fused, streaming
from infobert_fast.functional.implementation import Implementation, choose

__all__ = ["PRECISIONS", "Precision", "count_pairs", "gather", "pairwise_mlp_logsumexp"]

Precision = Literal["exact", "fast"]
PRECISIONS: tuple[Precision, ...] = ("exact", "fast")


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
        local_index, pair_index, implementation, precision, validate: as in :func:`infobert_fast.functional.info_nce`.

    Returns:
        ``[B]`` or ``[P]`` in nats, float32 for half-precision inputs; differentiable once in a, b, w2 and b2.

    Raises:
        As :func:`infobert_fast.functional.info_nce`.
    """
    w2, b2 = w2.reshape(-1), b2.reshape(-1)
    checks.choice("precision", precision, PRECISIONS)
    checks.matrix("a", a)
    checks.matrix("b", b, width=a.shape[1], like=("a", a))
    checks.vector("w2", w2, a.shape[1], like=("a", a))
    checks.vector("b2", b2, 1, like=("a", a))
    pairs, others = count_pairs(a, b, local_index, pair_index, chunk_size, ("a", "b"), validate)
    if chunk_size is not None and pairs != others:
        raise ValueError(f"`a` gives {pairs} pairs and `b` {others}; chunks need one of each: pass `pair_index`")
    chosen = choose(implementation, a, kernel=True, compiled=True)
    if chosen == "reference":
        return reference.pairwise_mlp_logsumexp(
            a, b, w2, b2, local_index=local_index, pair_index=pair_index, chunk_size=chunk_size
        )

    with torch.autocast(a.device.type, enabled=False):
        if chosen == "triton":
            return fused.pairwise_mlp_logsumexp(a, b, w2, b2, local_index, pair_index, chunk_size, precision)
        # Inside a graph that is compiled already the loops are part of it.
        compiled = chosen == "compiled" and not torch.compiler.is_compiling()
        a_pairs = gather(a, local_index)
        if chunk_size is None:
            lse = streaming.pairwise_mlp_logsumexp(a_pairs.unsqueeze(0), b.unsqueeze(0), w2, b2, compiled=compiled)
            return lse.squeeze(0)
        b_pairs = gather(b, pair_index)
        whole = pairs - pairs % chunk_size
        parts = []
        for start, stop, size in ((0, whole, chunk_size), (whole, pairs, pairs - whole)):
            if start < stop:
                a_chunks, b_chunks = (rows[start:stop].unflatten(0, (-1, size)) for rows in (a_pairs, b_pairs))
                lse = streaming.pairwise_mlp_logsumexp(a_chunks, b_chunks, w2, b2, compiled=compiled)
                parts.append(lse.flatten())
        return torch.cat(parts)


def gather(rows: Tensor, index: Tensor | None) -> Tensor:
    """``rows[index]``, all rows where None. Where rows repeat, an embedding's gradient is the same bits in every run;
    that of ``rows[index]`` is summed by atomics, on a CPU too, and was 40 times slower there.
    """
    return rows if index is None else F.embedding(index, rows)


def count_pairs(
    local: Tensor,
    global_: Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    chunk_size: int | None,
    names: tuple[str, str],
    validate: bool | None,
    may_be_empty: bool = False,
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
        if index is not None and not (may_be_empty and index.numel() == 0):
            checks.index(index_name, index, rows.shape[0], row_name, rows.device, validate=validate)
        counts.append(rows.shape[0] if index is None else index.shape[0])
    return counts[0], counts[1]
