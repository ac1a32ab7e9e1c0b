"""Log-sum-exp of the concat-MLP critic over all pairs or over chunks of pairs, and its gradients.

    u_ij = w2 . relu(a_j + b_i) + b2,      lse_i = logsumexp_j u_ij                                   [nats]

``a`` [M, H] holds the local rows (``Wx x``), ``b`` [B, H] the global rows (``Wy y + b1``), ``w2`` [H], ``b2`` [1].
Inputs may be fp32, bf16 or fp16 and strided; everything is accumulated, and ``lse`` returned, in fp32 (fp64 for fp64,
under the interpreter). Memory is O(rows H) plus a fixed budget: never rows x columns x H, and rows x columns only
below that budget. No float atomics: two runs give the same bits. Chunks of up to ``LONGEST`` pairs take
``chunks.py``, everything else ``rectangles.py``.
"""

import torch
from torch import Tensor

from .chunks import LONGEST, chunk_backward, chunk_forward
from .declaration import operator
from .launch import has_packed_half, near_units, on_device
from .mask_sums import segment_sum
from .operands import accumulator
from .pairs import Pairs, Terms
from .rectangles import problems_of, rectangle_backward, rectangle_forward


def pairwise_mlp_forward(a, b, w2, b2, pairs, *, precision="exact", keep_scores=True):
    """(lse, scores): log-sum-exp over local rows, and what the backward pass can use again (else None); ``scores`` is
    private to it.

    All pairs (``chunk_size`` None): ``lse`` [B], over the P pairs' local rows; of the indices only the local one is
    used. Chunked: consecutive ``chunk_size`` pairs form a chunk (the last may be shorter) and ``lse`` [P] runs over the
    pairs of p's own chunk; ``terms`` are not for chunks. Over no pairs ``lse`` is -inf.

    ``precision`` "exact" is fp32 arithmetic; "fast" rounds ``a``, ``b`` and their sums to fp16 and sums hidden units on
    the tensor cores, over all pairs and chunks longer than ``LONGEST`` (short ones are bound by launches, not
    arithmetic), on chips that have the instructions.
    """
    if precision not in ("exact", "fast"):
        raise ValueError(f'precision is "exact" or "fast", got {precision!r}')
    if pairs.chunk_size is not None and pairs.terms != Terms():
        raise ValueError("chunks take every score as it is; got terms that leave some out or clip them")
    fast = precision == "fast" and has_packed_half(a)
    a, b, w2, pairs = _plain(a, b, w2, pairs)
    p = problems_of(a, b, pairs)
    if p.total_i == 0 or p.total_j == 0:
        return torch.full((p.total_i,), float("-inf"), device=a.device, dtype=accumulator(a)), None
    with on_device(a):
        if pairs.chunk_size is not None and pairs.chunk_size <= LONGEST:
            return chunk_forward(a, b, w2, b2, pairs.local_index, pairs.pair_index, p.total_j, pairs.chunk_size)
        return rectangle_forward(a, b, w2, b2, p, keep_scores, fast)


def pairwise_mlp_backward(
    grad_lse, lse, a, b, w2, b2, pairs, *, scores=None, precision="exact", need=(True,) * 4,
):  # fmt: skip
    """(da, db, dw2, db2) in their inputs' shapes and dtypes, None where ``need`` (a, b, w2, b2) says so.

    With ``G_ij = grad_i exp(u_ij - lse_i)``, zero where u is left out or clipped:
    ``da_j = w2 sum_i G_ij 1[a_j + b_i > 0]``, ``db_i`` alike, ``dw2`` from the same sums and ``db2 = sum G``. Rows that
    an index repeats receive the sum over their pairs, added in the pairs' order. ``precision`` is that of the forward
    pass: "fast" takes the masks of its fp16 rows, sums on the tensor cores and accumulates in fp32.
    """
    a, b, w2, pairs = _plain(a, b, w2, pairs)
    p = problems_of(a, b, pairs)
    need_a, need_b, need_w, need_b2 = need
    if p.total_i == 0 or p.total_j == 0:
        return tuple(x.new_zeros(x.shape) if wanted else None for x, wanted in zip((a, b, w2, b2), need, strict=True))
    fast = precision == "fast" and has_packed_half(a)
    grad_lse, chunk_size = grad_lse.contiguous(), pairs.chunk_size
    with on_device(a):
        if chunk_size is None or chunk_size > LONGEST:
            return rectangle_backward(grad_lse, lse, a, b, w2, b2, scores, p, need, fast)
        # exp(u - lse) sums to one over j, so that sum G = sum grad; 0 lse carries a NaN of the forward pass
        db2 = (grad_lse + 0 * lse).sum().reshape(b2.shape).to(b2.dtype) if need_b2 else None
        if not (need_a or need_b or need_w):
            return None, None, None, db2
        if scores is None:
            _, scores = chunk_forward(a, b, w2, b2, pairs.local_index, pairs.pair_index, p.total_j, chunk_size)
        indices = pairs.local_index, pairs.pair_index
        da, db, dw = chunk_backward(grad_lse, a, b, w2, scores, *indices, p.total_j, chunk_size, need)
        da = segment_sum(da, pairs.local_index, a) if need_a and pairs.local_index is not None else da
        db = segment_sum(db, pairs.pair_index, b) if need_b and pairs.pair_index is not None else db
        return da, db, dw.sum(0).to(w2.dtype) if need_w else None, db2


def _plain(a, b, w2, pairs):
    """The kernels step through vectors by one: only matrices may be strided."""
    local_index, pair_index, columns = (
        vector if vector is None else vector.contiguous()
        for vector in (pairs.local_index, pairs.pair_index, pairs.terms.columns)
    )
    pairs = pairs._replace(local_index=local_index, pair_index=pair_index, terms=pairs.terms._replace(columns=columns))
    return near_units(a), near_units(b), w2.contiguous(), pairs


def _fake(a, b, w2, b2, local_index, pair_index, columns, chunk_size, clip, precision, keep):
    pairs = a.shape[0] if local_index is None else local_index.shape[0]
    return a.new_empty((b.shape[0] if chunk_size is None else pairs,), dtype=accumulator(a)), a.new_empty((0,))


def _pack(a, local_index, pair_index, columns, chunk_size, clip):
    count = a.shape[0] if local_index is None else local_index.shape[0]
    return Pairs(count, local_index, pair_index, chunk_size, terms=Terms(columns, clip=clip))


def _backward(grads, inputs, results, need):
    (a, b, w2, b2, *meeting, precision, _), (lse, scores) = inputs, results
    return pairwise_mlp_backward(
        grads[0], lse, a, b, w2, b2, _pack(a, *meeting), precision=precision, need=need,
        scores=scores if scores.numel() else None,
    )  # fmt: skip


@operator("pairwise_mlp", _fake, _backward, gradients=4)
def _logsumexp(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, local_index: Tensor | None, pair_index: Tensor | None,
    columns: Tensor | None, chunk_size: int | None, clip: float | None, precision: str, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = _pack(a, local_index, pair_index, columns, chunk_size, clip)
    lse, scores = pairwise_mlp_forward(a, b, w2, b2, pairs, precision=precision, keep_scores=keep)
    return lse, a.new_empty((0,)) if scores is None or not keep else scores


def logsumexp(a, b, w2, b2, pairs, precision):
    """``lse`` of ``pairwise_mlp_forward``, differentiable in a, b, w2 and b2."""
    # within a graph the scores are made again: their shape would depend on a memory budget
    keep = not torch.compiler.is_compiling() and torch.is_grad_enabled()
    keep = keep and (a.requires_grad or b.requires_grad or w2.requires_grad)
    meeting = pairs.local_index, pairs.pair_index, pairs.terms.columns, pairs.chunk_size, pairs.terms.clip
    return _logsumexp(a, b, w2, b2, *meeting, precision, keep)
