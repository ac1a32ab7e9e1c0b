"""Short chunks of pairs, whole chunks in one program: the regime of the paper (52 chunks of 32), where launches are
the cost.

One launch forward and one backward straight from the rows of ``a`` and ``b``, gathered through the indices. The
arithmetic is the literal ``w2 . relu(a + b)``: three instructions per pair and hidden unit instead of two, but no
operand to prepare.
"""

import torch
import triton
import triton.language as tl

from .operands import accumulator


@triton.jit
def chunk_rows(index_ptr, chunk, o_c, n_c, n_pairs, HAS_INDEX: tl.constexpr):
    """(source row, validity) of the pairs of one chunk."""
    o_p = chunk.to(tl.int64) * n_c + o_c
    m_p = (o_c < n_c) & (o_p < n_pairs)
    row = tl.load(index_ptr + o_p, mask=m_p, other=0).to(tl.int64) if HAS_INDEX else o_p
    return row, m_p


@triton.jit
def chunk_forward_kernel(
    a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, b2_ptr, lse_ptr, soft_ptr,
    a_row, a_unit, b_row, b_unit, H, n_c, n_pairs,
    C: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr, LOCAL: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """lse of BI rows of a chunk, and softmax_ij = exp(u_ij - lse_i) as [2, chunks, C, C]: by rows and by columns."""
    chunk, o_i = tl.program_id(0), tl.program_id(1) * BI + tl.arange(0, BI)
    o_j = tl.arange(0, C)
    dtype = lse_ptr.dtype.element_ty
    row_j, m_j = chunk_rows(local_ptr, chunk, o_j, n_c, n_pairs, LOCAL)
    row_i, m_i = chunk_rows(pair_ptr, chunk, o_i, n_c, n_pairs, PAIR)
    u = tl.zeros([BI, C], dtype=dtype)
    for h in range(0, H, BH):
        # hidden units first: the sum over them then stays within a thread
        o_h = h + tl.arange(0, BH)
        m_h = o_h < H
        a = tl.load(a_ptr + row_j[None, :] * a_row + o_h[:, None] * a_unit, mask=m_h[:, None] & m_j[None, :], other=0.0)
        b = tl.load(b_ptr + row_i[None, :] * b_row + o_h[:, None] * b_unit, mask=m_h[:, None] & m_i[None, :], other=0.0)
        w = tl.load(w_ptr + o_h, mask=m_h, other=0.0).to(dtype)
        a, b = a.to(dtype), b.to(dtype)
        u += tl.sum(tl.maximum(a[:, None, :] + b[:, :, None], 0.0) * w[:, None, None], 0)
        # max(NaN, 0) is 0 in hardware; x - x is 0, or NaN where x is not finite
        u += tl.sum(a - a, 0)[None, :] + tl.sum(b - b, 0)[:, None]
    u += tl.load(b2_ptr).to(dtype)
    u = tl.where(m_j[None, :], u, float("-inf"))
    m = tl.max(u, 1)
    lse = m + tl.log(tl.sum(tl.exp(u - m[:, None]), 1))
    tl.store(lse_ptr + chunk.to(tl.int64) * n_c + o_i, lse, mask=m_i)
    soft = tl.where(m_i[:, None] & m_j[None, :], tl.exp(u - lse[:, None]), 0.0)
    soft_ptr += chunk.to(tl.int64) * C * C
    tl.store(soft_ptr + o_i[:, None] * C + o_j[None, :], soft)
    soft_ptr += tl.num_programs(0).to(tl.int64) * C * C
    tl.store(soft_ptr + o_i[:, None] + o_j[None, :] * C, soft)


@triton.jit
def load_row(x_ptr, index_ptr, p, x_row, o_x, m_h, dtype: tl.constexpr, HAS_INDEX: tl.constexpr):
    row = tl.load(index_ptr + p).to(tl.int64) if HAS_INDEX else p
    return tl.load(x_ptr + row * x_row + o_x, mask=m_h, other=0.0).to(dtype)


@triton.jit
def chunk_backward_kernel(
    a_ptr, b_ptr, local_ptr, pair_ptr, w_ptr, grad_ptr, soft_ptr, da_ptr, db_ptr, dw_ptr,
    a_row, a_unit, b_row, b_unit, H, n_c, n_pairs,
    C: tl.constexpr, BH: tl.constexpr, LOCAL: tl.constexpr, PAIR: tl.constexpr,
    NEED_A: tl.constexpr, NEED_B: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """Per-pair da, db [pairs, H] and this chunk's dw2 [chunks, H], for BH hidden units."""
    chunk, o_c = tl.program_id(0), tl.arange(0, C)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    m_h = o_h < H
    dtype = soft_ptr.dtype.element_ty
    first = chunk.to(tl.int64) * n_c
    n = tl.minimum(n_c, n_pairs - first).to(tl.int32)
    # rows past the end are clamped, not masked (their softmax is zero): tiles of predicates would spill
    p = first + tl.minimum(o_c, n - 1)
    w = tl.load(w_ptr + o_h, mask=m_h, other=0.0).to(dtype)
    dw = tl.zeros([BH], dtype=dtype)
    # the shift that keeps dw2's digits (see mask_sums.py) may be any: that of the chunk's first pair
    a_0 = load_row(a_ptr, local_ptr, first, a_row, o_h * a_unit, m_h, dtype, LOCAL)
    b_0 = load_row(b_ptr, pair_ptr, first, b_row, o_h * b_unit, m_h, dtype, PAIR)
    shift = (b_0 - a_0) * 0.5
    soft_ptr += chunk.to(tl.int64) * C * C
    if NEED_A or NEED_W:
        row = tl.load(local_ptr + p).to(tl.int64) if LOCAL else p
        a = tl.load(a_ptr + row[:, None] * a_row + o_h[None, :] * a_unit, mask=m_h[None, :]).to(dtype)
        ga = tl.zeros([C, BH], dtype=dtype)
        for i in range(0, n):
            b_i = load_row(b_ptr, pair_ptr, first + i, b_row, o_h * b_unit, m_h, dtype, PAIR)
            g = tl.load(soft_ptr + i * C + o_c) * tl.load(grad_ptr + first + i).to(dtype)
            ga += g[:, None] * (b_i[None, :] > -a).to(dtype)
        dw += tl.sum((a + shift[None, :]) * ga, 0)
        if NEED_A:
            tl.store(
                da_ptr + first * H + (o_c[:, None] * H + o_h[None, :]),
                ga * w[None, :],
                mask=(o_c < n)[:, None] & m_h[None, :],
            )
    if NEED_B or NEED_W:
        soft_ptr += tl.num_programs(0).to(tl.int64) * C * C
        row = tl.load(pair_ptr + p).to(tl.int64) if PAIR else p
        b = tl.load(b_ptr + row[:, None] * b_row + o_h[None, :] * b_unit, mask=m_h[None, :]).to(dtype)
        gb = tl.zeros([C, BH], dtype=dtype)
        for j in range(0, n):
            a_j = load_row(a_ptr, local_ptr, first + j, a_row, o_h * a_unit, m_h, dtype, LOCAL)
            gb += tl.load(soft_ptr + j * C + o_c)[:, None] * (a_j[None, :] > -b).to(dtype)
        gb *= tl.load(grad_ptr + p).to(dtype)[:, None]
        dw += tl.sum((b - shift[None, :]) * gb, 0)
        if NEED_B:
            tl.store(
                db_ptr + first * H + (o_c[:, None] * H + o_h[None, :]),
                gb * w[None, :],
                mask=(o_c < n)[:, None] & m_h[None, :],
            )
    if NEED_W:
        tl.store(dw_ptr + chunk.to(tl.int64) * H + o_h, dw, mask=m_h)


LONGEST = 64
ROWS, FORWARD_UNITS, BACKWARD_UNITS = 16, 16, 64


def backward_warps(C):
    """Half as many would do the arithmetic of a 32- or 64-row tile as well, and spill."""
    return 4 if C < 64 else 8


def chunk_forward(a, b, w2, b2, local_index, pair_index, n_pairs, chunk_size):
    """(lse [pairs], softmax [2, chunks, C, C]) with C the chunk size's next power of two, at least 16."""
    C, count = max(ROWS, triton.next_power_of_2(chunk_size)), triton.cdiv(n_pairs, chunk_size)
    dtype = accumulator(a)
    lse = torch.empty((n_pairs,), device=a.device, dtype=dtype)
    soft = torch.empty((2, count, C, C), device=a.device, dtype=dtype)
    chunk_forward_kernel[(count, C // ROWS)](
        a, b, local_index, pair_index, w2, b2, lse, soft, *a.stride(), *b.stride(), a.shape[1], chunk_size, n_pairs,
        C=C, BI=ROWS, BH=FORWARD_UNITS, LOCAL=local_index is not None, PAIR=pair_index is not None,
        num_warps=C // 8, enable_fp_fusion=True,
    )  # fmt: skip
    return lse, soft


def chunk_backward(grad_lse, a, b, w2, soft, local_index, pair_index, n_pairs, chunk_size, need):
    """(da [pairs, H], db [pairs, H], dw2 [chunks, H]), None if unneeded; fp32 where an index will add up the pairs."""
    need_a, need_b, need_w, _ = need
    _, count, C, _ = soft.shape
    H = a.shape[1]

    da = torch.empty(
        (n_pairs if need_a else 0, H), device=a.device, dtype=a.dtype if local_index is None else soft.dtype
    )
    db = torch.empty(
        (n_pairs if need_b else 0, H), device=b.device, dtype=b.dtype if pair_index is None else soft.dtype
    )
    dw = torch.empty((count if need_w else 0, H), device=a.device, dtype=soft.dtype)
    chunk_backward_kernel[(count, triton.cdiv(H, BACKWARD_UNITS))](
        a, b, local_index, pair_index, w2, grad_lse, soft, da, db, dw, *a.stride(), *b.stride(), H, chunk_size, n_pairs,
        C=C, BH=BACKWARD_UNITS, LOCAL=local_index is not None, PAIR=pair_index is not None,
        NEED_A=need_a, NEED_B=need_b, NEED_W=need_w, num_warps=backward_warps(C), enable_fp_fusion=True,
    )  # fmt: skip
    return da if need_a else None, db if need_b else None, dw if need_w else None
