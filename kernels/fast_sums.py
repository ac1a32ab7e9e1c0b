"""The fast preset's backward sums: masks as packed fp16 numbers, their weighted sum on the tensor cores.

``sum_k G[k, r] 1[x_rh > -y_kh]`` is, for one row r, a matrix of masks [h, k] times a vector. One ``set.gt.f16x2`` makes
two masks, 1.0 or 0.0 exactly; the product has two columns, the weights in fp16 and their rounding remainder, which
together keep close to fp32's digits; it accumulates in fp32. Rows are the fp16 operands of the fast forward, so that
the masks are those of the function it computes.
"""

import triton
import triton.language as tl


@triton.jit
def greater(x, y, PACKED: tl.constexpr):
    if PACKED:
        t = tl.inline_asm_elementwise(
            "set.gt.f16x2.f16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        t = (x > y).to(tl.float16)
    return t


@triton.jit(do_not_specialize=["n_r", "n_k", "total_r", "total_k", "first_problem"])
def fast_mask_sum_kernel(
    x_ptr, minus_y_ptr, g_ptr, scale_ptr, out_ptr,
    row_step, unit_step, H, n_r, n_k, total_r, total_k,
    first_problem, first_r, first_k, pad_r, pad_k, block_r, block_k, g_plane, k_per_split,
    BR: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    ACCUMULATE: tl.constexpr, PACKED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As ``mask_sum_kernel``; x is [rows, units], -y [units, rows], both padded, g [2, problems, block_r, block_k]."""
    tiles = block_r // BR
    i_block, i_r = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_split = tl.program_id(2)
    i_problem = (first_problem + i_block).to(tl.int64)
    o_r = tl.arange(0, BR)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    o_k, o_n = tl.arange(0, BK), tl.arange(0, 8)
    n_valid = tl.minimum(tl.minimum(n_k - first_k, total_k - i_problem * n_k - first_k), block_k).to(tl.int32)
    first = i_split * k_per_split
    x_ptr += (i_problem * pad_r + first_r + i_r * BR) * row_step
    minus_y_ptr += i_problem * pad_k + first_k
    g_ptr += (i_block.to(tl.int64) * block_r + i_r * BR) * block_k
    x = tl.load(x_ptr + o_r[:, None] * row_step + o_h[None, :])
    acc = tl.zeros([BR, BH, 8], dtype=tl.float32)
    # weights past the end are zero, rows too: only the last tile reads them
    for k in tl.range(first, tl.minimum(n_valid, first + k_per_split), BK, num_stages=STAGES):
        y = tl.load(minus_y_ptr + o_h.to(tl.int64)[:, None] * unit_step + (k + o_k)[None, :])
        g_ptrs = g_ptr + (o_r[:, None] * block_k + (k + o_k)[None, :])[:, :, None] + o_n[None, None, :] * g_plane
        g = tl.load(g_ptrs, mask=(o_n < 2)[None, None, :], other=0.0)
        acc = tl.dot(greater(x[:, :, None], y[None, :, :], PACKED), g, acc)
    total = tl.sum(acc, 2) * tl.load(scale_ptr)
    first_r += i_r * BR
    p_r = i_problem * n_r + first_r
    m_r = o_r < tl.minimum(n_r - first_r, total_r - p_r)
    out_ptrs = out_ptr + (i_split.to(tl.int64) * total_r + p_r) * H + (o_r[:, None] * H + o_h[None, :])
    m_out = m_r[:, None] & (o_h < H)[None, :]
    if ACCUMULATE:
        total += tl.load(out_ptrs, mask=m_out, other=0.0)
    tl.store(out_ptrs, total, mask=m_out)


# 0.88 instructions per unit and 146 to 158 registers; 8 rows need 1.03 and read half as much again past L1
ROWS, UNITS, PAIRS, WARPS, STAGES = 16, 64, 32, 4, 3


def fast_mask_sums(
    out, x, minus_y, g, scale, n_r, n_k, total_r, total_k, problem, blocks,
    *, first_r, first_k, pad_r, pad_k, block_r, block_k, accumulate,
):  # fmt: skip
    """Launch over ``blocks`` problems from ``problem`` on."""
    k_per_split = triton.cdiv(block_k, PAIRS * out.shape[0]) * PAIRS
    fast_mask_sum_kernel[(blocks * block_r // ROWS, x.shape[1] // UNITS, out.shape[0])](
        x, minus_y, g, scale, out, x.stride(0), minus_y.stride(0), out.shape[2], n_r, n_k, total_r, total_k,
        problem, first_r, first_k, pad_r, pad_k, block_r, block_k, g.stride(0), k_per_split,
        BR=ROWS, BH=UNITS, BK=PAIRS, ACCUMULATE=accumulate, PACKED=not triton.knobs.runtime.interpret, STAGES=STAGES,
        num_warps=WARPS, enable_fp_fusion=True,
    )  # fmt: skip
