"""Whole batches and long chunks: score tiles and a merge forward; blocks of weights and two masked sums backward."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .fast_scores import fast_partials, half_operands, launch_scores, power_of_two
from .fast_sums import fast_mask_sums
from .launch import config, threads_per_warp
from .launch_table import Config
from .mask_sums import finish, mask_sums, sum_buffer
from .operands import accumulator, centre, operand, slot_order
from .pairs import Terms
from .scores import logsumexp_kernel, merge_kernel, weights_kernel

# below this many bytes the forward pass keeps the scores for the backward pass, which then saves their recomputation
KEEP_BYTES = 64 * 2**20
# the backward pass handles this many bytes of weights G at a time (kept in both orders)
BLOCK_BYTES = 256 * 2**20
# a tile's 32 rows of so many scores are as far as 32-bit offsets within it reach
MOST_COLUMNS = 2**26


class Problems(NamedTuple):
    """``problems`` rectangles of n_i x n_j pairs (the last may be ragged), together total_i rows, total_j columns.

    Columns are the rows ``local_index`` of a, rows the rows ``global_index`` of b, all in order where None.
    """

    problems: int
    n_i: int
    n_j: int
    total_i: int
    total_j: int
    pad_i: int
    pad_j: int
    tile_j: int
    config: Config
    local_index: Tensor | None
    global_index: Tensor | None
    terms: Terms


def problems_of(a, b, pairs, choice=None):
    """Every row of b against all pairs or, of each chunk, its pairs' rows."""
    size, global_index = pairs.chunk_size, None
    if size is None:
        count, n_i, n_j, total_i = 1, b.shape[0], pairs.count, b.shape[0]
    else:
        count, global_index, total_i = triton.cdiv(pairs.count, size), pairs.pair_index, pairs.count
        n_i = n_j = min(size, total_i)
    choice = choice or config(a, n_j)
    tile_j = 4 * threads_per_warp(a) * choice.warps
    pad_i, pad_j = triton.cdiv(n_i, 32) * 32, triton.cdiv(n_j, tile_j) * tile_j
    if pad_j > MOST_COLUMNS:
        raise ValueError(f"{n_j} local rows were given; the kernels take {MOST_COLUMNS} at once: use smaller chunks")
    fixed = count, n_i, n_j, total_i, pairs.count, pad_i, pad_j, tile_j, choice
    return Problems(*fixed, pairs.local_index, global_index, pairs.terms)


def score_operands(a, b, w2, p):
    """Arguments that every score kernel starts with, and the row steps of its two operands."""
    shift = centre(a, b, accumulator(a))
    order, bounds = slot_order(w2)
    A, alpha = operand(a, p.local_index, w2, -shift, order, bounds, p.problems, p.n_j, p.total_j, p.pad_j)
    B, beta = operand(b, p.global_index, w2, shift, order, bounds, p.problems, p.n_i, p.total_i, p.pad_i)
    return A, B, alpha, beta, bounds


def exact_partials(a, b, w2, b2, p, scores):
    """Partial (maximum, sum) [splits, rows] of the exact preset; fills ``scores`` where given."""
    tiles_i, tiles_j = triton.cdiv(p.n_i, p.config.rows), p.pad_j // p.tile_j
    splits = min(tiles_j, triton.cdiv(p.config.programs, p.problems * tiles_i))
    j_per_split = triton.cdiv(tiles_j, splits) * p.tile_j
    splits = triton.cdiv(p.pad_j, j_per_split)
    A, B, alpha, beta, bounds = score_operands(a, b, w2, p)
    m, s = (torch.empty((splits, p.total_i), device=a.device, dtype=accumulator(a)) for _ in range(2))
    logsumexp_kernel[(p.problems * tiles_i, splits)](
        A, B, alpha, beta, b2, bounds, p.terms.columns, m, s, scores,
        p.n_i, p.n_j, p.total_j, p.pad_i, p.pad_j, A.stride(0), B.stride(0), j_per_split, p.total_i, p.terms.clip,
        BI=p.config.rows, BL=p.tile_j // 4, KEEP=scores is not None, num_warps=p.config.warps, enable_fp_fusion=True,
    )  # fmt: skip
    return m, s


def rectangle_forward(a, b, w2, b2, p, keep_scores, fast):
    """(lse [rows], scores or None)."""
    dtype = accumulator(a)
    keep = keep_scores and p.problems * p.pad_i * p.pad_j * dtype.itemsize <= KEEP_BYTES
    scores = torch.empty((p.problems, p.pad_i, p.pad_j), device=a.device, dtype=dtype) if keep else None
    partials = fast_partials if fast else exact_partials
    m, s = partials(a, b, w2, b2, p, scores)
    lse = torch.empty((p.total_i,), device=a.device, dtype=dtype)
    merge_kernel[(triton.cdiv(p.total_i, 32),)](
        m, s, lse, p.total_i, m.shape[0], BR=32, BK=32, num_warps=4, enable_fp_fusion=True
    )
    return lse, scores


def rectangle_backward(grad_lse, lse, a, b, w2, b2, scores, p, need, fast):
    """(da, db, dw2, db2), None where not needed."""
    need_a, need_b, need_w, need_b2 = need
    local = a if p.local_index is None else a.index_select(0, p.local_index)
    global_ = b if p.global_index is None else b.index_select(0, p.global_index)
    sums = fast_pair_sums if fast else pair_sums
    sums_a, sums_b, total = sums(grad_lse, lse, a, b, w2, b2, scores, local, global_, p, need)
    shift = centre(a, b, lse.dtype)
    da, dw_a = finish(sums_a, local, w2, -shift, a, p.local_index, need_a, need_w)
    db, dw_b = finish(sums_b, global_, w2, shift, b, p.global_index, need_b, need_w)
    db2 = total.reshape(b2.shape).to(b2.dtype) if need_b2 else None
    return da, db, (dw_a + dw_b).to(w2.dtype) if need_w else None, db2


def sum_of_weights(grad_lse, lse, p):
    """``sum_ij G_ij``, and whether blocks of G are still to be added to it. Softmax weights sum to one over j, so that
    it is ``sum grad``, unless some scores are clipped and weigh nothing.
    """
    if p.terms.clip is not None:
        return lse.new_zeros(()), True
    # 0 lse carries a NaN of the forward pass; a row of no term has none
    known = grad_lse + 0 * (lse if p.terms.columns is None else lse.masked_fill(lse == -torch.inf, 0))
    return known.sum(), False


def pair_sums(grad_lse, lse, a, b, w2, b2, scores, local, global_, p, need):
    """ga [splits, P, H] and gb [splits, rows, H] from weights G made block by block, None where not needed; sum G."""
    operands = (None,) * 5 if scores is not None else score_operands(a, b, w2, p)
    total, add = sum_of_weights(grad_lse, lse, p)
    blocks, block_problems, block_i = blocks_of(p, lse)
    weights = torch.empty((2, block_problems * block_i * p.pad_j), device=a.device, dtype=lse.dtype)
    sums_a, sums_b = sum_buffers(local, global_, block_problems, block_i, p, need, lse.dtype)
    for problem, count, i, rows in blocks:
        launch_weights(operands, scores, problem * p.pad_i + i, b2, grad_lse, lse, weights, problem, count, i, rows, p)
        if add:
            total += weights[0, : count * rows * p.pad_j].sum()
        if sums_a is not None:
            mask_sums(
                sums_a, local, global_, weights[0], p.n_j, p.n_i, p.total_j, p.total_i, problem, count,
                first_r=0, first_k=i, block_r=p.pad_j, block_k=rows, accumulate=i > 0,
            )  # fmt: skip
        if sums_b is not None and (of_block := rows_of(problem, count, i, rows, p)):
            part = sum_buffer(global_[of_block], block_i, p.n_j, block_problems, p.config.programs, lse.dtype)
            mask_sums(
                part, global_[of_block], local[problem * p.n_j :], weights[1],
                p.n_i - i, p.n_j, part.shape[1], p.total_j - problem * p.n_j, 0, count,
                first_r=0, first_k=0, block_r=rows, block_k=p.pad_j, accumulate=False,
            )  # fmt: skip
            torch.sum(part, 0, out=sums_b[0, of_block])
    return sums_a, sums_b, total


def fast_pair_sums(grad_lse, lse, a, b, w2, b2, scores, local, global_, p, need):
    """As ``pair_sums``, of the rows in fp16 that the fast forward pass saw."""
    A, B, *_ = operands = half_operands(a, b, w2, p)
    total, add = sum_of_weights(grad_lse, lse, p)
    blocks, block_problems, block_i = blocks_of(p, lse)
    size = block_problems * block_i * p.pad_j
    weights = torch.empty((2, 2, size), device=a.device, dtype=torch.float16)
    block_scores = torch.empty((size if scores is None else 0,), device=a.device, dtype=torch.float32)
    sums_a, sums_b = sum_buffers(local, global_, block_problems, block_i, p, need, lse.dtype)
    minus_a, minus_b = (None if sums is None else (-x).t().contiguous() for sums, x in ((sums_b, A), (sums_a, B)))
    # no weight exceeds its row's gradient: the power of two that brings the largest just below 2 ** 15
    scale = power_of_two(grad_lse.abs().amax().float(), 14)
    grad_lse, scale = grad_lse * scale, (1 / scale).reshape(1)
    for problem, count, i, rows in blocks:
        u, first_u = scores, problem * p.pad_i + i
        if scores is None:
            u, first_u = block_scores, 0
            launch_scores(operands, b2, p, u, problem, count, i, rows, count * rows)
        launch_weights((None,) * 5, u, first_u, b2, grad_lse, lse, weights, problem, count, i, rows, p)
        if add:
            total += weights[0, :, : count * rows * p.pad_j].float().sum() * scale[0]
        if sums_a is not None:
            fast_mask_sums(
                sums_a, A, minus_b, weights[1], scale, p.n_j, p.n_i, p.total_j, p.total_i, problem, count,
                first_r=0, first_k=i, pad_r=p.pad_j, pad_k=p.pad_i, block_r=p.pad_j, block_k=rows, accumulate=i > 0,
            )  # fmt: skip
        if sums_b is not None and (of_block := rows_of(problem, count, i, rows, p)):
            part = sum_buffer(global_[of_block], block_i, p.n_j, block_problems, p.config.programs, lse.dtype)
            fast_mask_sums(
                part, B[problem * p.pad_i + i :], minus_a[:, problem * p.pad_j :], weights[0], scale,
                p.n_i - i, p.n_j, part.shape[1], p.total_j - problem * p.n_j, 0, count,
                first_r=0, first_k=0, pad_r=p.pad_i, pad_k=p.pad_j, block_r=rows, block_k=p.pad_j, accumulate=False,
            )  # fmt: skip
            torch.sum(part, 0, out=sums_b[0, of_block])
    return sums_a, sums_b, total


def blocks_of(p, lse):
    """(blocks, problems, rows of the largest): each block is some problems from ``problem`` on, whole where one fits
    the budget, else some rows of one problem, as (problem, how many, first row, rows)."""
    row_bytes = 2 * p.pad_j * lse.dtype.itemsize
    block_i = min(p.pad_i, max(BLOCK_BYTES // row_bytes // 32, 1) * 32)
    block_problems = min(p.problems, max(BLOCK_BYTES // (row_bytes * p.pad_i), 1))
    blocks = [
        (problem, min(block_problems, p.problems - problem), i, min(block_i, p.pad_i - i))
        for problem in range(0, p.problems, block_problems)
        for i in range(0, p.pad_i, block_i)
    ]
    return blocks, block_problems, block_i


def rows_of(problem, count, i, rows, p):
    """The pairs that a block's global rows are; None where the last problem ends before the block."""
    first = problem * p.n_i + i
    last = min((problem + count - 1) * p.n_i + min(i + rows, p.n_i), p.total_i)
    return slice(first, last) if first < last else None


def sum_buffers(local, global_, block_problems, block_i, p, need, dtype):
    """Sums over pairs for local and for global rows, None where neither rows nor w2 need them. A block finishes its
    global rows, so that only their sums of one block are split: of all rows they would not be linear in memory."""
    need_a, need_b, need_w, _ = need
    sums_a = sum_buffer(local, p.n_j, block_i, block_problems, p.config.programs, dtype) if need_a or need_w else None
    sums_b = torch.empty((1, *global_.shape), device=global_.device, dtype=dtype) if need_b or need_w else None
    return sums_a, sums_b


def launch_weights(operands, scores, first_u, b2, grad_lse, lse, weights, problem, count, i, rows, p):
    """Fill ``weights`` [2, size], or [2, 2, size] in fp16, for one block; ``operands`` where there are no scores."""
    A, B, alpha, beta, bounds = operands
    weights_kernel[(count * rows // p.config.rows, p.pad_j // p.tile_j)](
        A, B, alpha, beta, b2, bounds, p.terms.columns, scores, grad_lse, lse, weights[0], weights[1],
        p.n_i, p.n_j, p.total_j, p.pad_i, p.pad_j,
        A.stride(0) if A is not None else 0, B.stride(0) if B is not None else 0, p.total_i,
        problem, i, first_u, rows, weights.shape[-1], p.terms.clip,
        BI=p.config.rows, BL=p.tile_j // 4, KEPT=scores is not None, HALVES=weights.dtype == torch.float16,
        num_warps=p.config.warps, enable_fp_fusion=True,
    )  # fmt: skip
