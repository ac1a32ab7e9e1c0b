"""InfoNCE over short chunks: the bound and, in the same launch, its gradients.

For the n pairs of a chunk, ``count`` chunks and scores ``u`` of ``pairwise_mlp.py``,

    bound = 1 / count sum_chunks 1 / n sum_i ( softplus(u_ii) - log(n + sum_j e^u_ij) + log n )

A program has the scores of its whole chunk, so it knows ``d bound / d u`` before anybody asks: the gradients for an
upstream gradient of one are made at once and scaled when it arrives. One launch makes them, one adds them up over
chunks and repeated rows, and the backward pass is a multiplication, where the bound's O(N) terms alone would take some
thirty small operations. Memory is O(N H).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .chunks import LONGEST, chunk_gradient, chunk_scores, gradient_tile, padded, source_rows
from .declaration import operator
from .launch import near_units, on_device
from .mask_sums import segment_sum


@triton.jit(do_not_specialize=["n_c", "n_pairs"], do_not_specialize_on_alignment=["local_ptr", "pair_ptr"])
def chunk_bound_kernel(
    a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, b2_ptr, bound_ptr, g_ptr, da_ptr, db_ptr, dw_ptr, db2_ptr,
    a_row, a_unit, b_row, b_unit, H, n_c, n_pairs,
    C: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, LOCAL: tl.constexpr, PAIR: tl.constexpr,
    NEED_A: tl.constexpr, NEED_B: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """One chunk's part of the bound and of db2, and per-pair da or db [pairs, H] and a part of dw2 of BR pairs.

    Every program makes the chunk's scores anew: half of the work in the paper's regime, where chunks times two programs
    leave multiprocessors idle anyway, and no other launch to wait for.
    """
    chunk, block, side = tl.program_id(0).to(tl.int64), tl.program_id(1) // 2, tl.program_id(1) % 2
    dtype = bound_ptr.dtype.element_ty
    o_c = tl.arange(0, C)
    first = chunk * n_c
    n = tl.minimum(n_c, n_pairs - first).to(tl.int32)
    m_c = o_c < n
    p = first + tl.minimum(o_c, n - 1)
    row_j, row_i = source_rows(local_ptr, p, LOCAL), source_rows(pair_ptr, p, PAIR)
    u = chunk_scores(a_ptr, b_ptr, w_ptr, b2_ptr, row_j, row_i, a_row, a_unit, b_row, b_unit, H, C, C, BS, dtype)
    positive = tl.sum(tl.where(o_c[:, None] == o_c[None, :], u, 0.0), 1)
    u = tl.where(m_c[None, :], u, float("-inf"))
    m = tl.max(u, 1)
    lse = m + tl.log(tl.sum(tl.exp(u - m[:, None]), 1))
    # exp(softplus(u)) = 1 + e^u: logsumexp_j softplus(u_ij) = log(n + sum_j e^u_ij)
    log_n = tl.log(n.to(dtype))
    # the larger of two, and the log of a number from 1 to 2: what 1 + e^-x rounds away is below a rounding of 1
    negative = tl.maximum(lse, log_n) + tl.log(1.0 + tl.exp(-tl.abs(lse - log_n)))
    small = tl.log(1.0 + tl.exp(-tl.abs(positive)))
    # a lone pair's two terms are equal but for their rounding: a factor 0 keeps the 0 exact and a NaN visible
    scale = (n > 1).to(dtype) / (n.to(dtype) * tl.num_programs(0).to(dtype))
    terms = (tl.maximum(positive, 0.0) + small - negative + log_n) * scale
    own = tl.exp(tl.minimum(positive, 0.0) - small) * scale
    weights = tl.where(o_c[:, None] == o_c[None, :], own[:, None], 0.0) - tl.exp(u - negative[:, None]) * scale
    weights = tl.where(m_c[:, None] & m_c[None, :], weights, 0.0)
    if tl.program_id(1) == 0:
        # x - x is NaN where x is not finite: the maximum above is not
        terms += (positive - positive) + (lse - lse)
        tl.store(bound_ptr + chunk, tl.sum(tl.where(m_c, terms, 0.0), 0))
        tl.store(db2_ptr + chunk, tl.sum(tl.sum(weights, 1), 0))
    part = chunk * tl.num_programs(1) + tl.program_id(1)
    if side == 0:
        if NEED_A or NEED_W:
            chunk_gradient(
                weights, g_ptr + part * C * C, C, 1, block, first, n,
                a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, da_ptr, dw_ptr + part * H,
                a_row, a_unit, b_row, b_unit, H, 0, H, C, BR, BH, LOCAL, PAIR, NEED_A, NEED_W,
            )  # fmt: skip
    else:
        if NEED_B or NEED_W:
            chunk_gradient(
                weights, g_ptr + part * C * C, 1, C, block, first, n,
                b_ptr, a_ptr, pair_ptr, local_ptr, w_ptr, db_ptr, dw_ptr + part * H,
                b_row, b_unit, a_row, a_unit, H, 0, H, C, BR, BH, PAIR, LOCAL, NEED_B, NEED_W,
            )  # fmt: skip


@triton.jit
def column_sum(x_ptr, n, H, o_h, BP: tl.constexpr, BH: tl.constexpr):
    """Sum of the n rows of x [n, H] at some columns, always in the same order."""
    o_p = tl.arange(0, BP)
    m_h = (o_h < H)[None, :]
    total = tl.zeros([BP, BH], dtype=x_ptr.dtype.element_ty)
    for p in range(0, n, BP):
        at = (p + o_p).to(tl.int64)[:, None] * H + o_h[None, :]
        total += tl.load(x_ptr + at, mask=(p + o_p < n)[:, None] & m_h, other=0.0)
    return tl.sum(total, 0)


@triton.jit(
    do_not_specialize=["n_rows", "n_pairs", "n_chunks", "n_parts"], do_not_specialize_on_alignment=["index_ptr"]
)
def gather_parts_kernel(
    bounds_ptr, db2_parts_ptr, dw_parts_ptr, pairs_ptr, index_ptr, bound_ptr, db_ptr, dw_ptr, db2_ptr,
    n_rows, n_pairs, n_chunks, n_parts, H,
    BP: tl.constexpr, BH: tl.constexpr, NEED_W: tl.constexpr, SCANNED: tl.constexpr,
):  # fmt: skip
    """db [n_rows, H] from the pairs that share a row if ``SCANNED``, and the sums over chunks and programs."""
    r = tl.program_id(0)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    if SCANNED:  # known when compiling: without an index there is nothing to compile a load from
        o_p = tl.arange(0, BP)
        if r < n_rows:
            total = tl.zeros([BP, BH], dtype=pairs_ptr.dtype.element_ty)
            for p in range(0, n_pairs, BP):
                mine = tl.load(index_ptr + p + o_p, mask=p + o_p < n_pairs, other=-1) == r
                at = (p + o_p).to(tl.int64)[:, None] * H + o_h[None, :]
                total += tl.load(pairs_ptr + at, mask=mine[:, None] & (o_h < H)[None, :], other=0.0)
            tl.store(db_ptr + r.to(tl.int64) * H + o_h, tl.sum(total, 0), mask=o_h < H)
    if r == n_rows:
        if NEED_W:
            tl.store(dw_ptr + o_h, column_sum(dw_parts_ptr, n_parts, H, o_h, BP, BH), mask=o_h < H)
        if tl.program_id(1) == 0:
            one = tl.arange(0, 1)
            tl.store(bound_ptr + one, column_sum(bounds_ptr, n_chunks, 1, one, BP, 1))
            tl.store(db2_ptr + one, column_sum(db2_parts_ptr, n_chunks, 1, one, BP, 1))


SCORE_UNITS = 8
GATHER_PAIRS, GATHER_UNITS = 256, 32
# up to so many distinct rows of b each row looks through all pairs' indices, one launch; beyond, the pairs are sorted
FEW_ROWS = 64


def chunk_bound(a, b, w2, b2, local_index, pair_index, chunk_size, need):
    """(bound [], da, db, dw2, db2): InfoNCE in nats; its gradients for an upstream gradient of one, None where ``need``
    says so.

    ``a`` [M, H], ``b`` [B, H], ``w2`` [H], ``b2`` [1] share fp32 (fp64 under the interpreter) and may be strided. Rows
    that an index repeats receive the sum over their pairs, in the pairs' order. Two runs give the same bits.
    """
    a, b = near_units(a), near_units(b)
    w2, local_index, pair_index = (x if x is None else x.contiguous() for x in (w2, local_index, pair_index))
    n_pairs = a.shape[0] if local_index is None else local_index.shape[0]
    H, count, C = a.shape[1], triton.cdiv(n_pairs, chunk_size), padded(chunk_size)
    need_a, need_b, need_w, _ = need
    rows, units, warps = gradient_tile(C)
    parts = 2 * C // rows if need_a or need_b or need_w else 1

    def fresh(*shape):
        return torch.empty(shape, device=a.device, dtype=a.dtype)

    bound, db2, dw_parts = fresh(1), fresh(1), fresh(need_w * count * parts, H)
    bounds, db2_parts = fresh(count), fresh(count)  # two: half of one would be aligned for some counts alone
    dw, da, db = fresh(need_w * H), fresh(need_a * n_pairs, H), fresh(need_b * n_pairs, H)
    scanned = b.shape[0] if need_b and pair_index is not None and b.shape[0] <= FEW_ROWS else 0
    db_rows = fresh(scanned, H)
    with on_device(a):
        chunk_bound_kernel[(count, parts)](
            a, b, local_index, pair_index, w2, b2, bounds, fresh(count * parts, C, C), da, db, dw_parts, db2_parts,
            *a.stride(), *b.stride(), H, chunk_size, n_pairs,
            C=C, BS=SCORE_UNITS, BR=rows, BH=units, LOCAL=local_index is not None, PAIR=pair_index is not None,
            NEED_A=need_a, NEED_B=need_b, NEED_W=need_w, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
        gather_parts_kernel[(scanned + 1, triton.cdiv(H, GATHER_UNITS))](
            bounds, db2_parts, dw_parts, db, pair_index, bound, db_rows, dw, db2,
            scanned, n_pairs, count, count * parts, H,
            BP=GATHER_PAIRS, BH=GATHER_UNITS, NEED_W=need_w, SCANNED=scanned > 0, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        if need_a and local_index is not None:
            da = segment_sum(da, local_index, a)
        if need_b and pair_index is not None:
            db = db_rows if scanned else segment_sum(db, pair_index, b)
    gradients = (x if wanted else None for x, wanted in zip((da, db, dw, db2), need, strict=True))
    return bound.reshape(()), *gradients


def is_short(chunk_size):
    """Whether chunks of this size are for this file."""
    return chunk_size <= LONGEST


def _fake(a, b, w2, b2, local_index, pair_index, chunk_size, need):
    wanted = zip((a, b, w2, b2), need, strict=True)
    return a.new_empty(()), *(a.new_empty(x.shape if needed else (0,)) for x, needed in wanted)


def _backward(grads, inputs, results, need):
    """The gradients that the forward made, scaled: one launch for all."""
    wanted = [gradient for gradient, needed in zip(results[1:], need, strict=True) if needed]
    scaled = iter(torch._foreach_mul(wanted, grads[0]))
    return tuple(next(scaled) if needed else None for needed in need)


@operator("chunk_info_nce", _fake, _backward, gradients=4)
def _info_nce(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, local_index: Tensor | None, pair_index: Tensor | None,
    chunk_size: int, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    bound, *gradients = chunk_bound(a, b, w2, b2, local_index, pair_index, chunk_size, need)
    da, db, dw2, db2 = (a.new_empty((0,)) if gradient is None else gradient for gradient in gradients)
    return bound, da, db, dw2, db2


def info_nce(a, b, w2, b2, pairs):
    """The bound of ``chunk_bound``, differentiable in a, b, w2 and b2: its forward makes the gradients as well."""
    # what a graph will need of them is not known where it is called
    every = torch.compiler.is_compiling()
    need = [every or (torch.is_grad_enabled() and x.requires_grad) for x in (a, b, w2, b2)]
    return _info_nce(a, b, w2, b2, pairs.local_index, pairs.pair_index, pairs.chunk_size, need)
