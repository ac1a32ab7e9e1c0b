"""Short chunks of pairs, a whole chunk's scores in one program: the regime of the paper (52 chunks of 32), where
launches are the cost.

Straight from the rows of ``a`` and ``b``, gathered through the indices: no operand to prepare. The arithmetic is the
literal ``w2 . relu(a + b)``, three instructions per pair and hidden unit instead of two. ``chunk_bound.py`` makes the
whole bound of the same pieces.
"""

import torch
import triton
import triton.language as tl

from .operands import accumulator

UNROLL = tl.constexpr(2)


@triton.jit
def source_rows(index_ptr, p, HAS_INDEX: tl.constexpr):
    """Row of the source matrix of pair p."""
    return tl.load(index_ptr + p).to(tl.int64) if HAS_INDEX else p


@triton.jit
def chunk_scores(
    a_ptr, b_ptr, w_ptr, b2_ptr, row_j, row_i, a_row, a_unit, b_row, b_unit, H,
    BI: tl.constexpr, BJ: tl.constexpr, BH: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """u [BI, BJ] of the given rows of ``b`` and ``a``."""
    u = tl.zeros([BI, BJ], dtype=dtype)
    not_finite_j = tl.zeros([BH, BJ], dtype=dtype)
    not_finite_i = tl.zeros([BH, BI], dtype=dtype)
    a_ptrs = a_ptr + row_j[None, :] * a_row
    b_ptrs = b_ptr + row_i[None, :] * b_row
    # hidden units first: the sum over them then stays within a thread. Past the last one it is the weight that is zero.
    o_h = tl.arange(0, BH)
    a_next = tl.load(a_ptrs + tl.minimum(o_h, H - 1)[:, None] * a_unit)
    b_next = tl.load(b_ptrs + tl.minimum(o_h, H - 1)[:, None] * b_unit)
    for h in range(0, H, BH):
        a, b = a_next.to(dtype), b_next.to(dtype)
        w = tl.load(w_ptr + h + o_h, mask=h + o_h < H, other=0.0).to(dtype)
        # a chunk's program runs alone on its multiprocessor: nobody else hides the loads' latency
        ahead = tl.minimum(h + BH + o_h, H - 1)[:, None]
        a_next = tl.load(a_ptrs + ahead * a_unit)
        b_next = tl.load(b_ptrs + ahead * b_unit)
        u += tl.sum(tl.maximum(a[:, None, :] + b[:, :, None], 0.0) * w[:, None, None], 0)
        # max(NaN, 0) is 0 in hardware; x - x is 0, or NaN where x is not finite
        not_finite_j += a - a
        not_finite_i += b - b
    u += tl.sum(not_finite_j, 0)[None, :] + tl.sum(not_finite_i, 0)[:, None]
    return u + tl.load(b2_ptr).to(dtype)


@triton.jit
def chunk_gradient(
    weights, g_ptr, g_i, g_j, block, first, n, x_ptr, y_ptr, x_index_ptr, y_index_ptr, w_ptr, dx_ptr, dw_ptr,
    x_row, x_unit, y_row, y_unit, H, first_h, last_h,
    C: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, X_INDEX: tl.constexpr, Y_INDEX: tl.constexpr,
    NEED_X: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """dx_r = w2 sum_k weights_kr 1[x_r + y_k > 0] of BR pairs r of the chunk, and their part of dw2 [H].

    ``weights`` [i, j] goes to ``g_ptr``, this program's own memory, by the steps that make it [k, r] there: a loop over
    k reads it back row by row, which registers do not allow.
    """
    dtype = weights.dtype
    o_c = tl.arange(0, C)
    tl.store(g_ptr + o_c[:, None] * g_i + o_c[None, :] * g_j, weights)
    tl.debug_barrier()
    o_r = block * BR + tl.arange(0, BR)
    for h in range(first_h, last_h, BH):
        o_h = h + tl.arange(0, BH)
        m_h = o_h < H
        o_x = tl.minimum(o_h, H - 1) * x_unit
        o_y = tl.minimum(o_h, H - 1) * y_unit
        # rows past the end are clamped, not masked (their weights are zero): tiles of predicates would spill
        row = source_rows(x_index_ptr, first + tl.minimum(o_r, n - 1), X_INDEX)
        minus_x = -tl.load(x_ptr + row[:, None] * x_row + o_x[None, :]).to(dtype)
        total = tl.zeros([BR, BH], dtype=dtype)
        for k in range(0, n, UNROLL):
            for d in tl.static_range(UNROLL):
                row_y = source_rows(y_index_ptr, first + tl.minimum(k + d, n - 1), Y_INDEX)
                y = tl.load(y_ptr + row_y * y_row + o_y).to(dtype)
                g = tl.load(g_ptr + (k + d) * C + o_r)
                # a 0/1 float times g: FSET + FFMA; tl.where(mask, g, 0) costs one to two instructions more
                total += g[:, None] * (y[None, :] > minus_x).to(dtype)
        if NEED_W:
            # the shift that keeps dw2's digits (see mask_sums.py) may be any: that of the chunk's first pair
            x_0 = tl.load(x_ptr + source_rows(x_index_ptr, first, X_INDEX) * x_row + o_x).to(dtype)
            y_0 = tl.load(y_ptr + source_rows(y_index_ptr, first, Y_INDEX) * y_row + o_y).to(dtype)
            shift = (y_0 - x_0) * 0.5
            tl.store(dw_ptr + o_h, tl.sum((shift[None, :] - minus_x) * total, 0), mask=m_h)
        if NEED_X:
            w = tl.load(w_ptr + o_h, mask=m_h, other=0.0).to(dtype)
            tl.store(
                dx_ptr + first * H + (o_r[:, None] * H + o_h[None, :]),
                total * w[None, :],
                mask=(o_r < n)[:, None] & m_h[None, :],
            )


@triton.jit(do_not_specialize=["n_c", "n_pairs"], do_not_specialize_on_alignment=["local_ptr", "pair_ptr"])
def chunk_forward_kernel(
    a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, b2_ptr, lse_ptr, soft_ptr,
    a_row, a_unit, b_row, b_unit, H, n_c, n_pairs,
    C: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, LOCAL: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """lse of BI rows of a chunk, and softmax_ij = exp(u_ij - lse_i) as [chunks, C, C]."""
    chunk, o_i, o_j = tl.program_id(0).to(tl.int64), tl.program_id(1) * BI + tl.arange(0, BI), tl.arange(0, C)
    dtype = lse_ptr.dtype.element_ty
    first = chunk * n_c
    n = tl.minimum(n_c, n_pairs - first).to(tl.int32)
    row_j = source_rows(local_ptr, first + tl.minimum(o_j, n - 1), LOCAL)
    row_i = source_rows(pair_ptr, first + tl.minimum(o_i, n - 1), PAIR)
    u = chunk_scores(a_ptr, b_ptr, w_ptr, b2_ptr, row_j, row_i, a_row, a_unit, b_row, b_unit, H, BI, C, BH, dtype)
    u = tl.where((o_j < n)[None, :], u, float("-inf"))
    m = tl.max(u, 1)
    lse = m + tl.log(tl.sum(tl.exp(u - m[:, None]), 1))
    tl.store(lse_ptr + first + o_i, lse, mask=o_i < n)
    soft = tl.where((o_i < n)[:, None] & (o_j < n)[None, :], tl.exp(u - lse[:, None]), 0.0)
    tl.store(soft_ptr + chunk * C * C + o_i[:, None] * C + o_j[None, :], soft)


@triton.jit(do_not_specialize=["n_c", "n_pairs"], do_not_specialize_on_alignment=["local_ptr", "pair_ptr"])
def chunk_backward_kernel(
    a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, grad_ptr, soft_ptr, g_ptr, da_ptr, db_ptr, dw_ptr,
    a_row, a_unit, b_row, b_unit, H, n_c, n_pairs,
    C: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr, LOCAL: tl.constexpr, PAIR: tl.constexpr,
    NEED_A: tl.constexpr, NEED_B: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """Per-pair da and db [pairs, H] and parts of dw2, for BR pairs and BH hidden units of one of the two."""
    chunk, block, side = tl.program_id(0).to(tl.int64), tl.program_id(1) // 2, tl.program_id(1) % 2
    dtype = soft_ptr.dtype.element_ty
    first = chunk * n_c
    n = tl.minimum(n_c, n_pairs - first).to(tl.int32)
    o_c = tl.arange(0, C)
    grad = tl.load(grad_ptr + first + o_c, mask=o_c < n, other=0.0).to(dtype)
    weights = grad[:, None] * tl.load(soft_ptr + chunk * C * C + o_c[:, None] * C + o_c[None, :])
    program = (chunk * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    g_ptr += program * C * C
    dw_ptr += (chunk * tl.num_programs(1) + tl.program_id(1)) * H
    h = tl.program_id(2) * BH
    if side == 0:
        if NEED_A or NEED_W:
            chunk_gradient(
                weights, g_ptr, C, 1, block, first, n, a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, da_ptr, dw_ptr,
                a_row, a_unit, b_row, b_unit, H, h, h + BH, C, BR, BH, LOCAL, PAIR, NEED_A, NEED_W,
            )  # fmt: skip
    else:
        if NEED_B or NEED_W:
            chunk_gradient(
                weights, g_ptr, 1, C, block, first, n, b_ptr, a_ptr, pair_ptr, local_ptr, w_ptr, db_ptr, dw_ptr,
                b_row, b_unit, a_row, a_unit, H, h, h + BH, C, BR, BH, PAIR, LOCAL, NEED_B, NEED_W,
            )  # fmt: skip


LONGEST = 64
ROWS, FORWARD_UNITS = 16, 8


def padded(chunk_size):
    """A chunk's rows in a tile: the next power of two, at least 16."""
    return max(ROWS, triton.next_power_of_2(chunk_size))


def gradient_tile(C):
    """(rows, units, warps) of the backward sums: a thread owns one hidden unit of all rows, so that weights are loaded
    four at a time."""
    return min(C, 32), 4 * C, C // 8


def chunk_forward(a, b, w2, b2, local_index, pair_index, n_pairs, chunk_size):
    """(lse [pairs], softmax [chunks, C, C])."""
    C, count = padded(chunk_size), triton.cdiv(n_pairs, chunk_size)
    dtype = accumulator(a)
    lse = torch.empty((n_pairs,), device=a.device, dtype=dtype)
    soft = torch.empty((count, C, C), device=a.device, dtype=dtype)
    chunk_forward_kernel[(count, C // ROWS)](
        a, b, local_index, pair_index, w2, b2, lse, soft, *a.stride(), *b.stride(), a.shape[1], chunk_size, n_pairs,
        C=C, BI=ROWS, BH=FORWARD_UNITS, LOCAL=local_index is not None, PAIR=pair_index is not None,
        num_warps=C // 16, enable_fp_fusion=True,
    )  # fmt: skip
    return lse, soft


def chunk_backward(grad_lse, a, b, w2, soft, local_index, pair_index, n_pairs, chunk_size, need):
    """(da [pairs, H], db [pairs, H], dw2 [parts, H]), None if unneeded; fp32 where an index will add up the pairs."""
    need_a, need_b, need_w, _ = need
    count, C, _ = soft.shape
    H = a.shape[1]

    da = torch.empty(
        (n_pairs if need_a else 0, H), device=a.device, dtype=a.dtype if local_index is None else soft.dtype
    )
    db = torch.empty(
        (n_pairs if need_b else 0, H), device=b.device, dtype=b.dtype if pair_index is None else soft.dtype
    )
    rows, units, warps = gradient_tile(C)
    parts, blocks_h = 2 * C // rows, triton.cdiv(H, units)
    dw = torch.empty((count * parts if need_w else 0, H), device=a.device, dtype=soft.dtype)
    weights = torch.empty((count * parts * blocks_h, C, C), device=a.device, dtype=soft.dtype)
    chunk_backward_kernel[(count, parts, blocks_h)](
        a, b, local_index, pair_index, w2, grad_lse, soft, weights, da, db, dw,
        *a.stride(), *b.stride(), H, chunk_size, n_pairs,
        C=C, BR=rows, BH=units, LOCAL=local_index is not None, PAIR=pair_index is not None,
        NEED_A=need_a, NEED_B=need_b, NEED_W=need_w, num_warps=warps, enable_fp_fusion=True,
    )  # fmt: skip
    return da if need_a else None, db if need_b else None, dw if need_w else None
