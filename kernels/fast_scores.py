"""The fast preset's scores: hidden units in packed fp16, their weighted sum on the tensor cores, accumulated in fp32.

``relu(a + b)`` of two hidden units is one ``fma.rn.relu.f16x2``; the sum over units is a product with two columns of
fp16, ``w2`` and its rounding remainder, so that the weights keep close to fp32's digits and only ``a``, ``b`` and
their sum are rounded to fp16. Rows are centred as in ``operands.py`` and scaled by a power of two, which ``relu``
lets through: no overflow, no rounding error of its own.
"""

import torch
import triton
import triton.language as tl
from torch.nn.functional import pad

from .operands import centre
from .pairs import Terms
from .scores import clipped, counted


@triton.jit
def relu_of_sum(a, b, PACKED: tl.constexpr):
    if PACKED:
        t = tl.inline_asm_elementwise(
            "{ .reg .b32 one; mov.b32 one, 0x3C003C00; fma.rn.relu.f16x2 $0, $1, one, $2; }",
            "=r,r,r", [a, b], dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        t = tl.maximum(a + b, 0.0).to(tl.float16)
    return t


@triton.jit(do_not_specialize=["n_i", "n_j", "n_total", "n_rows"])
def fast_logsumexp_kernel(
    a_ptr, b_ptr, w_ptr, scale_ptr, b2_ptr, owner_ptr, m_ptr, s_ptr, u_ptr,
    n_i, n_j, n_total, pad_i, pad_j, row_step, j_per_split, n_rows, clip,
    BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
    KEEP: tl.constexpr, PACKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Partial (running maximum, sum of exponentials) of BI rows over a range of columns; operands are fp16 rows."""
    tiles = tl.cdiv(n_i, BI)
    i_tile, i_split, i_problem = tl.program_id(0) % tiles, tl.program_id(1), (tl.program_id(0) // tiles).to(tl.int64)
    n_valid = tl.minimum(n_j, n_total - i_problem * n_j).to(tl.int32)
    scale = tl.load(scale_ptr)
    shift = tl.load(b2_ptr).to(tl.float32)
    a_ptr += i_problem * pad_j * row_step
    b_ptr += (i_problem * pad_i + i_tile * BI) * row_step
    if KEEP:
        u_ptr += (i_problem * pad_i + i_tile * BI) * pad_j
    o_l, o_k, o_n = tl.arange(0, BI), tl.arange(0, BK), tl.arange(0, 8)
    m = tl.full([BI, BJ], float("-inf"), dtype=tl.float32)
    s = tl.zeros([BI, BJ], dtype=tl.float32)
    a_ptr += (i_split * j_per_split).to(tl.int64) * row_step
    for j in range(i_split * j_per_split, tl.minimum(n_valid, (i_split + 1) * j_per_split), BJ):
        o_j = j + tl.arange(0, BJ)
        acc = tl.zeros([BI, BJ, 8], dtype=tl.float32)
        # the tile is loaded inside the loop over units: a loop-invariant one would cross shared memory once per product
        for k in tl.range(0, row_step, BK, num_stages=STAGES):
            a = tl.load(a_ptr + tl.arange(0, BJ)[:, None] * row_step + (k + o_k)[None, :])
            b = tl.load(b_ptr + o_l[:, None] * row_step + (k + o_k)[None, :])
            w = tl.load(w_ptr + (k + o_k)[:, None] * 8 + o_n[None, :])
            t = relu_of_sum(a[None, :, :], b[:, None, :], PACKED)
            acc = tl.dot(t, tl.broadcast_to(w[None, :, :], [BI, BK, 8]), acc)
        a_ptr += BJ * row_step
        u = tl.sum(acc, 2) * scale + shift
        if KEEP:
            tl.store(u_ptr + o_l[:, None] * pad_j + o_j[None, :], u)
        if clip is not None:
            u = clipped(u, clip)
        m_j = counted(i_tile * BI + o_l, o_j, n_valid, owner_ptr)
        u = tl.where(m_j, u, float("-inf"))
        m_new = tl.maximum(m, u)
        # lanes that saw no column yet: -inf - -inf would be NaN
        s = tl.where(m_j, s * tl.exp(m - m_new) + tl.exp(u - m_new), s)
        m = m_new
    top = tl.max(m, 1)
    o_i = i_tile * BI + o_l
    p_i = i_problem * n_i + o_i
    m_i = (o_i < n_i) & (p_i < n_rows)
    p_part = i_split.to(tl.int64) * n_rows + p_i
    tl.store(m_ptr + p_part, top, mask=m_i)
    total = tl.sum(tl.where(m > float("-inf"), s * tl.exp(m - top[:, None]), s), 1)
    tl.store(s_ptr + p_part, total, mask=m_i)


EVERY = Terms()
# 8 rows x 32 columns per warp, the warps sharing the columns' tile: 0.83 instructions per unit and 232 registers on
# sm_90. One product over a batch of rows stays a register-fed HMMA; the warpgroup form (HGMMA) fences around every
# product and needs 1.2 to 1.9.
ROWS, COLUMNS, UNITS, WARPS, STAGES = 32, 32, 32, 4, 3


def power_of_two(top, bits):
    """The power of two that brings ``top`` just below 2 ** (bits + 1)."""
    return torch.exp2(bits - top.clamp_min(1e-30).log2().floor())


def half_operands(a, b, w2, p):
    """fp16 rows [count pad, units] of a and b, weights [units, 8] (w2, its remainder, zeros) and the scale [1] of u.

    Units are padded for both passes: to tiles of 32 forward, of 64 backward.
    """
    shift = centre(a, b, torch.float32)
    a, b, w2 = a.float() - shift, b.float() + shift, w2.float()
    scale = power_of_two(torch.maximum(a.abs().amax(), b.abs().amax()), 13)  # their sum stays below 2 ** 15
    w_scale = power_of_two(w2.abs().amax(), 10)
    units = -a.shape[1] % (2 * UNITS)
    w = w2 * w_scale
    high = w.half()
    weights = pad(torch.stack([high, (w - high.float()).half()], 1), (0, 6, 0, units))

    def rows(x, index, n_row, n_total, n_pad):
        x = (x * scale).half()
        x = x if index is None else x.index_select(0, index)
        x = pad(x, (0, units, 0, p.problems * n_row - n_total)).view(p.problems, n_row, -1)
        return pad(x, (0, 0, 0, n_pad - n_row)).view(p.problems * n_pad, -1)

    A = rows(a, p.local_index, p.n_j, p.total_j, p.pad_j)
    B = rows(b, p.global_index, p.n_i, p.total_i, p.pad_i)
    return A, B, weights, (1 / (scale * w_scale)).reshape(1)


def fast_partials(a, b, w2, b2, p, scores):
    """Partial (maximum, sum) [splits, rows] of the fast preset; fills ``scores`` where given."""
    return launch_scores(half_operands(a, b, w2, p), b2, p, scores, 0, p.problems, 0, p.n_i, p.total_i, p.terms)


def launch_scores(operands, b2, p, scores, problem, blocks, i, n_i, n_rows, terms=EVERY):
    """Partials of ``n_i`` rows from row i on, of ``blocks`` problems from ``problem`` on (one, where i > 0); ``terms``
    are those of whole problems.
    """
    A, B, weights, scale = operands
    A, B = A[problem * p.pad_j :], B[problem * p.pad_i + i :]
    tiles_i, tiles_j = triton.cdiv(n_i, ROWS), triton.cdiv(p.n_j, COLUMNS)
    splits = min(tiles_j, triton.cdiv(p.config.programs, blocks * tiles_i))
    j_per_split = triton.cdiv(tiles_j, splits) * COLUMNS
    splits = triton.cdiv(p.n_j, j_per_split)
    m, s = (torch.empty((splits, n_rows), device=A.device, dtype=torch.float32) for _ in range(2))
    fast_logsumexp_kernel[(blocks * tiles_i, splits)](
        A, B, weights, scale, b2, terms.columns, m, s, scores,
        n_i, p.n_j, p.total_j - problem * p.n_j, p.pad_i, p.pad_j, A.stride(0), j_per_split, n_rows, terms.clip,
        BI=ROWS, BJ=COLUMNS, BK=UNITS, KEEP=scores is not None, PACKED=not triton.knobs.runtime.interpret,
        STAGES=STAGES, num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip
    return m, s
