"""Scores of the concat-MLP critic for all pairs of a problem, and their log-sum-exp.

A *problem* is a rectangle of ``n_i`` global rows by ``n_j`` local rows: the whole batch, or one chunk. Its score is

    u_ij = w2 . relu(a_j + b_i) + b2 = alpha_j + beta_i + b2 + sum_+ |A_hj + B_hi| - sum_- |A_hj + B_hi|

with ``A = |w2| (a - c) / 2``, ``B = |w2| (b + c) / 2``, hidden units sorted by the sign of ``w2`` and ``alpha``,
``beta`` the signed sums of A and B (see ``operands.py``). A pair then costs two full-rate additions per hidden unit,
because |.| is a free operand modifier of the addition, where ``max`` runs at half rate.
"""

import triton
import triton.language as tl

UNROLL = tl.constexpr(2)


@triton.jit
def add_units(u0, u1, u2, u3, a_ptr, b_ptr, o_j, o_i, a_step, b_step, BL: tl.constexpr, PLUS: tl.constexpr):
    """Add |A + B| of the next UNROLL hidden units to four neighbouring tiles, or subtract it."""
    for k in tl.static_range(UNROLL):
        b = tl.load(b_ptr + k * b_step + o_i)[:, None]
        t0 = tl.abs(tl.load(a_ptr + k * a_step + o_j)[None, :] + b)
        t1 = tl.abs(tl.load(a_ptr + k * a_step + o_j + BL)[None, :] + b)
        t2 = tl.abs(tl.load(a_ptr + k * a_step + o_j + 2 * BL)[None, :] + b)
        t3 = tl.abs(tl.load(a_ptr + k * a_step + o_j + 3 * BL)[None, :] + b)
        if PLUS:
            u0, u1, u2, u3 = u0 + t0, u1 + t1, u2 + t2, u3 + t3
        else:
            u0, u1, u2, u3 = u0 - t0, u1 - t1, u2 - t2, u3 - t3
    return u0, u1, u2, u3


@triton.jit
def score_tile(a_ptr, b_ptr, o_j, o_i, a_step, b_step, bounds_ptr, BI: tl.constexpr, BL: tl.constexpr):
    """Four [BI, BL] tiles side by side of sum_+ |A + B| - sum_- |A + B|; see ``slot_order``."""
    # Four tiles as wide as the program has threads: a thread owns BI rows of 4 columns, operand loads need no exchange
    # through shared memory (one [BI, 4 BL] tile costs two barriers per hidden unit), and each b is used four times.
    n_plus = tl.load(bounds_ptr)
    n_end = tl.load(bounds_ptr + 1)
    u0 = tl.zeros([BI, BL], dtype=a_ptr.dtype.element_ty)
    u1 = u0
    u2 = u0
    u3 = u0
    a_minus = a_ptr + n_plus.to(tl.int64) * a_step
    b_minus = b_ptr + n_plus.to(tl.int64) * b_step
    # both signs in turn: sums of one sign after the other would grow large and cancel, at the cost of digits
    n_both = tl.minimum(n_plus, n_end - n_plus)
    for _ in range(0, n_both, UNROLL):
        u0, u1, u2, u3 = add_units(u0, u1, u2, u3, a_ptr, b_ptr, o_j, o_i, a_step, b_step, BL, True)
        u0, u1, u2, u3 = add_units(u0, u1, u2, u3, a_minus, b_minus, o_j, o_i, a_step, b_step, BL, False)
        a_ptr += UNROLL * a_step
        b_ptr += UNROLL * b_step
        a_minus += UNROLL * a_step
        b_minus += UNROLL * b_step
    for _ in range(n_both, n_plus, UNROLL):
        u0, u1, u2, u3 = add_units(u0, u1, u2, u3, a_ptr, b_ptr, o_j, o_i, a_step, b_step, BL, True)
        a_ptr += UNROLL * a_step
        b_ptr += UNROLL * b_step
    for _ in range(n_both, n_end - n_plus, UNROLL):
        u0, u1, u2, u3 = add_units(u0, u1, u2, u3, a_minus, b_minus, o_j, o_i, a_step, b_step, BL, False)
        a_minus += UNROLL * a_step
        b_minus += UNROLL * b_step
    return u0, u1, u2, u3


@triton.jit
def counted(o_i, o_j, n_valid, owner_ptr):
    """Which scores the sums of some rows take: those of columns before the end, and not of a pair's own row."""
    m = (o_j < n_valid)[None, :]
    if owner_ptr is not None:
        m = m & (tl.load(owner_ptr + o_j, mask=o_j < n_valid, other=-1)[None, :] != o_i[:, None])
    return m


@triton.jit
def clipped(u, clip):
    """u cut to [-clip, clip]; NaN stays."""
    return tl.where(u > clip, clip, tl.where(u < -clip, -clip, u))


@triton.jit
def finish_tile(
    u, alpha_ptr, shift, u_ptr, o_i, o_j, pad_j, n_valid, owner_ptr, clip, BI: tl.constexpr, KEEP: tl.constexpr
):
    """Add the separable terms, keep the scores where asked, and rule out those that the sums do not take."""
    u += tl.load(alpha_ptr + o_j)[None, :] + shift[:, None]
    if KEEP:
        tl.store(u_ptr + tl.arange(0, BI)[:, None] * pad_j + o_j[None, :], u)
    if clip is not None:
        u = clipped(u, clip)
    return tl.where(counted(o_i, o_j, n_valid, owner_ptr), u, float("-inf"))


@triton.jit(do_not_specialize=["n_i", "n_j", "n_total", "n_rows"])
def logsumexp_kernel(
    a_ptr, b_ptr, alpha_ptr, beta_ptr, b2_ptr, bounds_ptr, owner_ptr, m_ptr, s_ptr, u_ptr,
    n_i, n_j, n_total, pad_i, pad_j, a_step, b_step, j_per_split, n_rows, clip,
    BI: tl.constexpr, BL: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Partial (running maximum, sum of exponentials) of one block of rows over one range of columns."""
    tiles = tl.cdiv(n_i, BI)
    i_tile, i_split, i_problem = tl.program_id(0) % tiles, tl.program_id(1), (tl.program_id(0) // tiles).to(tl.int64)
    # the last chunk is ragged; for a single problem n_total = n_j and nothing changes
    n_valid = tl.minimum(n_j, n_total - i_problem * n_j).to(tl.int32)
    o_i = i_tile * BI + tl.arange(0, BI)
    shift = tl.load(beta_ptr + i_problem * pad_i + o_i) + tl.load(b2_ptr).to(beta_ptr.dtype.element_ty)
    a_ptr += i_problem * pad_j
    b_ptr += i_problem * pad_i
    alpha_ptr += i_problem * pad_j
    if KEEP:
        u_ptr += (i_problem * pad_i + i_tile * BI) * pad_j
    m = tl.full([BI], float("-inf"), dtype=shift.dtype)
    s = tl.zeros([BI], dtype=shift.dtype)
    for j in range(i_split * j_per_split, tl.minimum(n_valid, (i_split + 1) * j_per_split), 4 * BL):
        o_j = j + tl.arange(0, BL)
        u0, u1, u2, u3 = score_tile(a_ptr, b_ptr, o_j, o_i, a_step, b_step, bounds_ptr, BI, BL)
        u0 = finish_tile(u0, alpha_ptr, shift, u_ptr, o_i, o_j, pad_j, n_valid, owner_ptr, clip, BI, KEEP)
        u1 = finish_tile(u1, alpha_ptr, shift, u_ptr, o_i, o_j + BL, pad_j, n_valid, owner_ptr, clip, BI, KEEP)
        u2 = finish_tile(u2, alpha_ptr, shift, u_ptr, o_i, o_j + 2 * BL, pad_j, n_valid, owner_ptr, clip, BI, KEEP)
        u3 = finish_tile(u3, alpha_ptr, shift, u_ptr, o_i, o_j + 3 * BL, pad_j, n_valid, owner_ptr, clip, BI, KEEP)
        m_new = tl.maximum(m, tl.max(tl.maximum(tl.maximum(u0, u1), tl.maximum(u2, u3)), 1))
        if owner_ptr is not None:
            m_new = tl.maximum(m_new, -1e38)  # of a row that has no term yet: -inf - -inf would be NaN
        m_u = m_new[:, None]
        e = (tl.exp(u0 - m_u) + tl.exp(u1 - m_u)) + (tl.exp(u2 - m_u) + tl.exp(u3 - m_u))
        s = s * tl.exp(m - m_new) + tl.sum(e, 1)
        m = m_new
    p_i = i_problem * n_i + o_i
    m_i = (o_i < n_i) & (p_i < n_rows)
    p_part = i_split.to(tl.int64) * n_rows + p_i
    tl.store(m_ptr + p_part, m, mask=m_i)
    tl.store(s_ptr + p_part, s, mask=m_i)


@triton.jit(do_not_specialize=["n_rows", "n_splits"])
def merge_kernel(m_ptr, s_ptr, lse_ptr, n_rows, n_splits, BR: tl.constexpr, BK: tl.constexpr):
    """lse = log sum_k s_k exp(m_k), always in the order of the splits: the same bits in every run."""
    o_i = tl.program_id(0) * BR + tl.arange(0, BR)
    m_i = o_i < n_rows
    m = tl.full([BR], float("-inf"), dtype=lse_ptr.dtype.element_ty)
    s = tl.zeros([BR], dtype=lse_ptr.dtype.element_ty)
    for k in range(0, n_splits, BK):
        o_k = k + tl.arange(0, BK)
        m_k = (o_k < n_splits)[:, None] & m_i[None, :]
        o_part = o_k.to(tl.int64)[:, None] * n_rows + o_i[None, :]
        part_m = tl.load(m_ptr + o_part, mask=m_k, other=float("-inf"))
        part_s = tl.load(s_ptr + o_part, mask=m_k, other=0.0)
        m_new = tl.maximum(tl.maximum(m, tl.max(part_m, 0)), -1e38)  # finite where a row has no term
        s = s * tl.exp(m - m_new) + tl.sum(part_s * tl.exp(part_m - m_new[None, :]), 0)
        m = m_new
    tl.store(lse_ptr + o_i, m + tl.log(s), mask=m_i)


@triton.jit
def store_weights(
    u, shift, lse, grad, m_i, g_ptr, gt_ptr, o_i, o_l, o_t, n_valid, pad_j, block_i, plane, owner_ptr, clip,
    HALVES: tl.constexpr,
):  # fmt: skip
    m = m_i[:, None] & counted(o_i, o_t, n_valid, owner_ptr)
    if clip is not None:
        u += (shift + lse)[:, None]
        m = m & ((u > clip) | (u < -clip) == 0)
        g = grad[:, None] * tl.exp(u - lse[:, None])
    else:
        g = grad[:, None] * tl.exp(u + shift[:, None])
    g = tl.where(m, g, 0.0)
    o_g = o_l[:, None] * pad_j + o_t[None, :]
    o_gt = o_l[:, None] + o_t[None, :] * block_i
    if HALVES:
        # fp16 and its rounding remainder, in two planes
        high = g.to(tl.float16)
        low = (g - high.to(tl.float32)).to(tl.float16)
        tl.store(g_ptr + o_g, high)
        tl.store(g_ptr + plane + o_g, low)
        tl.store(gt_ptr + o_gt, high)
        tl.store(gt_ptr + plane + o_gt, low)
    else:
        tl.store(g_ptr + o_g, g)
        tl.store(gt_ptr + o_gt, g)


@triton.jit(do_not_specialize=["n_i", "n_j", "n_total", "n_rows", "first_problem"])
def weights_kernel(
    a_ptr, b_ptr, alpha_ptr, beta_ptr, b2_ptr, bounds_ptr, owner_ptr, u_ptr, grad_ptr, lse_ptr, g_ptr, gt_ptr,
    n_i, n_j, n_total, pad_i, pad_j, a_step, b_step, n_rows, first_problem, first_i, first_u, block_i, plane, clip,
    BI: tl.constexpr, BL: tl.constexpr, KEPT: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """G_ij = grad_i exp(u_ij - lse_i) of a block of rows, written [i, j] and [j, i]; zero outside the problem. Kept
    scores of this block start at row ``first_u``."""
    tiles = block_i // BI
    i_tile, j_tile, i_block = tl.program_id(0) % tiles, tl.program_id(1), tl.program_id(0) // tiles
    i_problem = (first_problem + i_block).to(tl.int64)
    n_valid = tl.minimum(n_j, n_total - i_problem * n_j).to(tl.int32)
    o_l, o_t = tl.arange(0, BI), tl.arange(0, BL)
    o_i = first_i + i_tile * BI + o_l
    o_j = j_tile * 4 * BL + o_t
    p_i = i_problem * n_i + o_i
    m_i = (o_i < n_i) & (p_i < n_rows)
    lse = tl.load(lse_ptr + p_i, mask=m_i, other=0.0)
    grad = tl.load(grad_ptr + p_i, mask=m_i, other=0.0).to(lse.dtype)
    row, column = i_block.to(tl.int64) * block_i + i_tile * BI, (j_tile * 4 * BL).to(tl.int64)
    g_ptr += row * pad_j + column
    gt_ptr += i_block.to(tl.int64) * block_i * pad_j + column * block_i + i_tile * BI
    n_valid -= j_tile * 4 * BL
    if owner_ptr is not None:
        owner_ptr += j_tile * 4 * BL
    if KEPT:
        u_ptrs = u_ptr + (i_block.to(tl.int64) * pad_i + first_u + i_tile * BI + o_l)[:, None] * pad_j + o_j[None, :]
        m_u = m_i[:, None]
        u0 = tl.load(u_ptrs, mask=m_u, other=0.0)
        u1 = tl.load(u_ptrs + BL, mask=m_u, other=0.0)
        u2 = tl.load(u_ptrs + 2 * BL, mask=m_u, other=0.0)
        u3 = tl.load(u_ptrs + 3 * BL, mask=m_u, other=0.0)
        shift = -lse
    else:
        a_ptr += i_problem * pad_j
        b_ptr += i_problem * pad_i
        alpha_ptr += i_problem * pad_j
        u0, u1, u2, u3 = score_tile(a_ptr, b_ptr, o_j, o_i, a_step, b_step, bounds_ptr, BI, BL)
        u0 += tl.load(alpha_ptr + o_j)[None, :]
        u1 += tl.load(alpha_ptr + o_j + BL)[None, :]
        u2 += tl.load(alpha_ptr + o_j + 2 * BL)[None, :]
        u3 += tl.load(alpha_ptr + o_j + 3 * BL)[None, :]
        shift = tl.load(beta_ptr + i_problem * pad_i + o_i) + tl.load(b2_ptr).to(lse.dtype) - lse
    store_weights(
        u0, shift, lse, grad, m_i, g_ptr, gt_ptr, o_i, o_l, o_t, n_valid, pad_j, block_i, plane, owner_ptr,
        clip, HALVES,
    )  # fmt: skip
    store_weights(
        u1, shift, lse, grad, m_i, g_ptr, gt_ptr, o_i, o_l, o_t + BL, n_valid, pad_j, block_i, plane, owner_ptr,
        clip, HALVES,
    )  # fmt: skip
    store_weights(
        u2, shift, lse, grad, m_i, g_ptr, gt_ptr, o_i, o_l, o_t + 2 * BL, n_valid, pad_j, block_i, plane, owner_ptr,
        clip, HALVES,
    )  # fmt: skip
    store_weights(
        u3, shift, lse, grad, m_i, g_ptr, gt_ptr, o_i, o_l, o_t + 3 * BL, n_valid, pad_j, block_i, plane, owner_ptr,
        clip, HALVES,
    )  # fmt: skip
