"""Log-sum-exp of the concat-MLP critic over all pairs or over chunks of pairs, and its gradients.

    u_ij = w2 . relu(a_j + b_i) + b2,      lse_i = logsumexp_j u_ij                                   [nats]

``a`` [M, H] holds the local rows (``Wx x``), ``b`` [B, H] the global rows (``Wy y + b1``), ``w2`` [H], ``b2`` [1].
Inputs may be fp32, bf16 or fp16 and strided; everything is accumulated, and ``lse`` returned, in fp32 (fp64 for fp64,
under the interpreter). Memory is O(rows H) plus a fixed budget: never rows x columns x H, and rows x columns only
below that budget. No float atomics: two runs give the same bits. Chunks of up to ``LONGEST`` pairs take
``chunks.py``, everything else ``rectangles.py``.
"""

import torch

from .chunks import LONGEST, chunk_backward, chunk_forward
from .launch import has_packed_half, near_units, on_device
from .mask_sums import segment_sum
from .operands import accumulator
from .rectangles import problems_of, rectangle_backward, rectangle_forward


def pairwise_mlp_forward(
    a, b, w2, b2, *, local_index=None, pair_index=None, chunk_size=None, precision="exact", keep_scores=True
):  # fmt: skip
    """(lse, scores): log-sum-exp over local rows, and what the backward pass can use again (else None); ``scores`` is
    private to it.

    All pairs (``chunk_size`` None): ``lse`` [B], over the P pairs' local rows ``local_index`` (default: all rows of
    ``a`` in order); ``pair_index`` is not used. Chunked: pair p is ``(a[local_index[p]], b[pair_index[p]])``,
    consecutive ``chunk_size`` pairs form a chunk (the last may be shorter) and ``lse`` [P] runs over the pairs of p's
    own chunk. Over no pairs ``lse`` is -inf.

    ``precision`` "exact" is fp32 arithmetic; "fast" rounds ``a``, ``b`` and their sums to fp16 and sums hidden units on
    the tensor cores, over all pairs and chunks longer than ``LONGEST`` (short ones are bound by launches, not
    arithmetic), on chips that have the instructions.
    """
    if precision not in ("exact", "fast"):
        raise ValueError(f'precision is "exact" or "fast", got {precision!r}')
    fast = precision == "fast" and has_packed_half(a)
    a, b = near_units(a), near_units(b)
    w2, local_index, pair_index = _vectors(w2, local_index, None if chunk_size is None else pair_index)
    p = problems_of(a, b, local_index, chunk_size)
    if p.total_i == 0 or p.total_j == 0:
        return torch.full((p.total_i,), float("-inf"), device=a.device, dtype=accumulator(a)), None
    with on_device(a):
        if chunk_size is not None and chunk_size <= LONGEST:
            return chunk_forward(a, b, w2, b2, local_index, pair_index, p.total_j, chunk_size)
        return rectangle_forward(a, b, w2, b2, local_index, pair_index, p, keep_scores, fast)


def pairwise_mlp_backward(
    grad_lse, lse, a, b, w2, b2,
    *, scores=None, local_index=None, pair_index=None, chunk_size=None, precision="exact", need=(True,) * 4,
):  # fmt: skip
    """(da, db, dw2, db2) in their inputs' shapes and dtypes, None where ``need`` (a, b, w2, b2) says so.

    With ``G_ij = grad_i exp(u_ij - lse_i)``: ``da_j = w2 sum_i G_ij 1[a_j + b_i > 0]``, ``db_i`` alike, ``dw2`` from
    the same sums and ``db2 = sum G``. Rows that ``local_index`` or ``pair_index`` repeat receive the sum over their
    pairs, added in the pairs' order. ``precision`` is that of the forward pass: "fast" takes the masks of its fp16
    rows, sums on the tensor cores and accumulates in fp32.
    """
    a, b = near_units(a), near_units(b)
    w2, local_index, pair_index = _vectors(w2, local_index, None if chunk_size is None else pair_index)
    p = problems_of(a, b, local_index, chunk_size)
    need_a, need_b, need_w, need_b2 = need
    db2 = None
    if need_b2:
        # exp(u - lse) sums to one over j, so that sum G = sum grad; 0 lse carries a NaN of the forward pass
        db2 = ((grad_lse + 0 * lse).sum() if p.total_j else lse.new_zeros(())).reshape(b2.shape).to(b2.dtype)
    if p.total_i == 0 or p.total_j == 0:
        return *(x.new_zeros(x.shape) if wanted else None for x, wanted in zip((a, b, w2), need[:3], strict=True)), db2
    if not (need_a or need_b or need_w):
        return None, None, None, db2
    fast = precision == "fast" and has_packed_half(a)
    grad_lse = grad_lse.contiguous()
    with on_device(a):
        if chunk_size is None or chunk_size > LONGEST:
            return *rectangle_backward(grad_lse, lse, a, b, w2, b2, scores, local_index, pair_index, p, need, fast), db2
        if scores is None:
            _, scores = chunk_forward(a, b, w2, b2, local_index, pair_index, p.total_j, chunk_size)
        da, db, dw = chunk_backward(grad_lse, a, b, w2, scores, local_index, pair_index, p.total_j, chunk_size, need)
        da = segment_sum(da, local_index, a) if need_a and local_index is not None else da
        db = segment_sum(db, pair_index, b) if need_b and pair_index is not None else db
        return da, db, dw.sum(0).to(w2.dtype) if need_w else None, db2


def _vectors(*vectors):
    """The kernels step through vectors by one: only matrices may be strided."""
    return tuple(None if vector is None else vector.contiguous() for vector in vectors)
