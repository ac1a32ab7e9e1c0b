"""Backward sums over the active hidden units: ``out[r, h] = sum_k G[k, r] 1[x_rh + y_kh > 0]``, and the gradients
made of them.

With r over local rows this is ``ga``, with r over global rows ``gb``; then

    da = w2 ga,   db = w2 gb,   dw2_h = sum_j (a_jh - c_h) ga_jh + sum_i (b_ih + c_h) gb_ih

because ``relu(t) = t 1[t > 0]``: the weight's gradient needs no pass over pairs. Any ``c`` gives the same sum, since
ga and gb have the same total; centring keeps its digits.
"""

import torch
import triton
import triton.language as tl

UNROLL = tl.constexpr(4)


# A row length divisible by 16 would make vector loads whose layout must be exchanged inside the loop. The counts, and
# where a block starts, are another batch's.
@triton.jit(
    do_not_specialize=["x_row", "y_row", "H", "n_r", "n_k", "total_r", "total_k", "first_problem", "k_per_split"],
    do_not_specialize_on_alignment=["x_ptr", "y_ptr"],
)
def mask_sum_kernel(
    x_ptr, y_ptr, g_ptr, out_ptr,
    x_row, x_unit, y_row, y_unit, H, n_r, n_k, total_r, total_k,
    first_problem, first_r, first_k, block_r, block_k, k_per_split,
    BR: tl.constexpr, BH: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """One [BR, BH] tile of the sums of one block of weights ``g`` [problems, block_k, block_r] over one range of k.

    Rows are pairs: row r of problem q is pair ``q n_r + r``; ``first_*`` is where the block starts in its problem.
    """
    # the comparison needs neither centring nor scaling: x > -y decides exactly as the sign of the rounded sum does
    tiles = block_r // BR
    i_block, i_r = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_split = tl.program_id(2)
    i_problem = first_problem + i_block
    dtype = g_ptr.dtype.element_ty
    o_l = i_r * BR + tl.arange(0, BR)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    m_h = o_h < H
    # rows are clamped, not masked: tiles of predicates and addresses that live across the loop would spill
    p_r = i_problem.to(tl.int64) * n_r + first_r
    last_r = tl.minimum(n_r - first_r, total_r - p_r).to(tl.int32) - 1
    row = p_r + tl.minimum(o_l, last_r)
    minus_x = -tl.load(x_ptr + row[:, None] * x_row + o_h[None, :] * x_unit, mask=m_h[None, :]).to(dtype)
    first = i_split * k_per_split
    p_k = i_problem.to(tl.int64) * n_k + first_k
    n_valid = tl.minimum(tl.minimum(n_k - first_k, total_k - p_k), block_k).to(tl.int32)
    y_ptr += (p_k + first) * y_row
    g_ptr += (i_block.to(tl.int64) * block_k + first) * block_r
    o_y = o_h * y_unit
    acc = tl.zeros([BR, BH], dtype=dtype)
    for k in range(first, tl.minimum(n_valid, first + k_per_split), UNROLL):
        for d in tl.static_range(UNROLL):
            # past the end g is zero: only the address must be a real one
            y = tl.load(y_ptr + tl.minimum(d, n_valid - 1 - k) * y_row + o_y, mask=m_h).to(dtype)
            g = tl.load(g_ptr + d * block_r + o_l)
            # a 0/1 float times g: FSET + FFMA; tl.where(mask, g, 0) costs one to two instructions more per unit
            acc += g[:, None] * (y[None, :] > minus_x).to(dtype)
        y_ptr += UNROLL * y_row
        g_ptr += UNROLL * block_r
    out_ptrs = out_ptr + (i_split.to(tl.int64) * total_r + p_r) * H + (o_l.to(tl.int64)[:, None] * H + o_h[None, :])
    m_out = (o_l <= last_r)[:, None] & m_h[None, :]
    if ACCUMULATE:
        acc += tl.load(out_ptrs, mask=m_out, other=0.0)
    tl.store(out_ptrs, acc, mask=m_out)


@triton.jit(do_not_specialize=["n_rows"])
def finish_kernel(
    sums_ptr, x_ptr, w_ptr, shift_ptr, dx_ptr, dw_ptr,
    x_row, x_unit, H, n_rows, rows_per_program,
    BR: tl.constexpr, BH: tl.constexpr, NEED_X: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """dx = w2 sums, and this program's part of dw2 = sum_r (x_r + shift) sums_r; sums is [rows, H]."""
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    m_h = o_h < H
    dtype = sums_ptr.dtype.element_ty
    w = tl.load(w_ptr + o_h, mask=m_h, other=0.0).to(dtype)
    shift = tl.load(shift_ptr + o_h, mask=m_h, other=0.0)
    dw = tl.zeros([BH], dtype=dtype)
    first = tl.program_id(0).to(tl.int64) * rows_per_program
    for r in range(0, rows_per_program, BR):
        o_r = first + r + tl.arange(0, BR)
        m_r = o_r < n_rows
        m = m_r[:, None] & m_h[None, :]
        o_sum = o_r[:, None] * H + o_h[None, :]
        total = tl.load(sums_ptr + o_sum, mask=m, other=0.0)
        if NEED_W:
            x = tl.load(x_ptr + o_r[:, None] * x_row + o_h[None, :] * x_unit, mask=m, other=0.0).to(dtype)
            dw += tl.sum(tl.where(m, (x + shift[None, :]) * total, 0.0), 0)
        if NEED_X:
            tl.store(dx_ptr + o_sum, total * w[None, :], mask=m)
    if NEED_W:
        tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * H + o_h, dw, mask=m_h)


@triton.jit
def segment_sum_kernel(
    x_ptr, order_ptr, start_ptr, out_ptr, H, BP: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """out[r] = sum of the rows order[start[r]:start[r + 1]] of x: repeated rows are added in their pairs' order."""
    r = tl.program_id(0).to(tl.int64)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    m_h = o_h < H
    end = tl.load(start_ptr + r + 1)
    acc = tl.zeros([BH], dtype=x_ptr.dtype.element_ty)
    for p in range(tl.load(start_ptr + r), end, BP):
        o_p = p + tl.arange(0, BP)
        m_p = o_p < end
        row = tl.load(order_ptr + o_p, mask=m_p, other=0).to(tl.int64)
        x = tl.load(x_ptr + row[:, None] * H + o_h[None, :], mask=m_p[:, None] & m_h[None, :], other=0.0)
        acc += tl.sum(x, 0)
    tl.store(out_ptr + r * H + o_h, acc, mask=m_h)


# 16 rows x 2 hidden units per thread of one warp: no spill, where 32 x 2 and 16 x 4 spill
SUM_ROWS, SUM_UNITS, FINISH_ROWS = 16, 64, 256


def sum_buffer(x, n_r, n_k, blocks, programs, dtype):
    """Uninitialised sums [splits, rows of x, H]: as many splits of k as it takes to have ``programs`` programs."""
    per_split = blocks * triton.cdiv(n_r, SUM_ROWS) * triton.cdiv(x.shape[1], SUM_UNITS)
    splits = max(1, min(programs // per_split, n_k // 64))
    return torch.empty((splits, *x.shape), device=x.device, dtype=dtype)


def mask_sums(
    out, x, y, g, n_r, n_k, total_r, total_k, problem, blocks, *, first_r, first_k, block_r, block_k, accumulate
):
    """Launch ``mask_sum_kernel`` over ``blocks`` problems from ``problem`` on."""
    H = x.shape[1]
    k_per_split = triton.cdiv(block_k, 4 * out.shape[0]) * 4
    mask_sum_kernel[(blocks * block_r // SUM_ROWS, triton.cdiv(H, SUM_UNITS), out.shape[0])](
        x, y, g, out, x.stride(0), x.stride(1), y.stride(0), y.stride(1), H, n_r, n_k, total_r, total_k,
        problem, first_r, first_k, block_r, block_k, k_per_split,
        BR=SUM_ROWS, BH=SUM_UNITS, ACCUMULATE=accumulate, num_warps=1, enable_fp_fusion=True,
    )  # fmt: skip


def finish(sums, x, w2, shift, like, index, need_x, need_w):
    """(gradient of ``like``, this side's part of dw2 [H]) from the sums over pairs."""
    if sums is None:
        return None, None
    sums = sums[0] if sums.shape[0] == 1 else sums.sum(0)
    n_rows, H = sums.shape
    # in place where nothing is cast: a program reads its rows before it writes them
    dtype = like.dtype if index is None else sums.dtype
    dx = sums if dtype == sums.dtype else torch.empty((n_rows, H), device=x.device, dtype=dtype)
    programs = triton.cdiv(n_rows, FINISH_ROWS)
    dw = torch.empty((programs, H), device=x.device, dtype=sums.dtype) if need_w else sums
    finish_kernel[(programs, triton.cdiv(H, SUM_UNITS))](
        sums, x, w2, shift, dx, dw, x.stride(0), x.stride(1), H, n_rows, FINISH_ROWS,
        BR=16, BH=SUM_UNITS, NEED_X=need_x, NEED_W=need_w, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    if need_x and index is not None:
        dx = segment_sum(dx, index, like)
    return dx if need_x else None, dw.sum(0) if need_w else None


def segment_sum(x, index, like):
    """[rows, H] in the dtype of ``like``: row r is the sum of the rows of x whose index is r, in their order."""
    n_rows, H = like.shape
    ordered, order = torch.sort(index, stable=True)
    start = torch.searchsorted(ordered, torch.arange(n_rows + 1, device=index.device, dtype=index.dtype))
    out = torch.empty((n_rows, H), device=x.device, dtype=like.dtype)
    segment_sum_kernel[(n_rows, triton.cdiv(H, SUM_UNITS))](
        x, order, start, out, H, BP=16, BH=SUM_UNITS, num_warps=1, enable_fp_fusion=True
    )
    return out
