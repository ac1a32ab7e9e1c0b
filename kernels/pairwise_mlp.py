"""Log-sum-exp of the concat-MLP critic over all pairs or over chunks of pairs, and its gradients.

    u_ij = w2 . relu(a_j + b_i) + b2,      lse_i = logsumexp_j u_ij                                   [nats]

``a`` [M, H] holds the local rows (``Wx x``), ``b`` [B, H] the global rows (``Wy y + b1``), ``w2`` [H], ``b2`` [1]. Inputs may be fp32, bf16 or fp16 and
strided; everything is accumulated, and ``lse`` returned, in fp32 (fp64 for fp64, under the interpreter). Memory is O(rows H) plus a
fixed budget: never rows x columns x H, and rows x columns only below that budget. No float atomics: two runs give the same bits.
"""

from typing import NamedTuple

import torch
import triton

from .chunks import LONGEST, chunk_backward, chunk_forward
from .launch import Config, config, on_device, threads_per_warp
from .mask_sums import finish_kernel, mask_sum_kernel, segment_sum_kernel
from .operands import centre, operand, slot_order
from .scores import logsumexp_kernel, merge_kernel, weights_kernel

# below this many bytes the forward pass keeps the scores for the backward pass, which then saves their recomputation
KEEP_BYTES = 64 * 2**20
# the backward pass handles this many bytes of weights G at a time (kept in both orders)
BLOCK_BYTES = 128 * 2**20
# 16 rows x 2 hidden units per thread of one warp: 158 registers; 32 x 2 spills
SUM_ROWS, SUM_UNITS, FINISH_ROWS = 16, 64, 256


class Problems(NamedTuple):
    """``count`` rectangles of n_i x n_j pairs, of total_i rows and total_j columns together (the last may be ragged)."""

    count: int
    n_i: int
    n_j: int
    total_i: int
    total_j: int
    pad_i: int
    pad_j: int
    tile_j: int
    config: Config


def problems_of(a, b, local_index, pair_index, chunk_size):
    pairs = a.shape[0] if local_index is None else local_index.shape[0]
    if chunk_size is None:
        count, n_i, n_j, total_i = 1, b.shape[0], pairs, b.shape[0]
    else:
        count, n_i, n_j, total_i = triton.cdiv(pairs, chunk_size), min(chunk_size, pairs), min(chunk_size, pairs), pairs
    choice = config(a, n_j)
    tile_j = 4 * threads_per_warp(a) * choice.warps
    pad_i, pad_j = triton.cdiv(n_i, 32) * 32, triton.cdiv(n_j, tile_j) * tile_j
    return Problems(count, n_i, n_j, total_i, pairs, pad_i, pad_j, tile_j, choice)


def accumulator(tensor):
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def score_operands(a, b, w2, local_index, pair_index, p):
    """Arguments that every score kernel starts with, and the row steps of its two operands."""
    shift = centre(a, b, accumulator(a))
    order, bounds = slot_order(w2)
    A, alpha = operand(a, local_index, w2, -shift, order, bounds, p.count, p.n_j, p.total_j, p.pad_j)
    B, beta = operand(b, pair_index, w2, shift, order, bounds, p.count, p.n_i, p.total_i, p.pad_i)
    return A, B, alpha, beta, bounds


def pairwise_mlp_forward(
    a, b, w2, b2, *, local_index=None, pair_index=None, chunk_size=None, keep_scores=True
):  # fmt: skip
    """(lse, scores): log-sum-exp over local rows, and the scores where they fit ``KEEP_BYTES`` (else None).

    All pairs (``chunk_size`` None): ``lse`` [B], over the P pairs' local rows ``local_index`` (default: all rows of ``a`` in order);
    ``pair_index`` is not used. Chunked: pair p is ``(a[local_index[p]], b[pair_index[p]])``, consecutive ``chunk_size`` pairs form a
    chunk (the last may be shorter) and ``lse`` [P] runs over the pairs of p's own chunk. ``scores`` is private to the backward pass.
    """
    p = problems_of(a, b, local_index, pair_index, chunk_size)
    dtype = accumulator(a)
    if p.total_i == 0 or p.total_j == 0:
        return torch.full((p.total_i,), float("-inf"), device=a.device, dtype=dtype), None
    if chunk_size is None:
        pair_index = None
    elif chunk_size <= LONGEST:
        with on_device(a):
            return chunk_forward(a, b, w2, b2, local_index, pair_index, p.total_j, chunk_size, dtype)
    keep = keep_scores and p.count * p.pad_i * p.pad_j * dtype.itemsize <= KEEP_BYTES
    tiles_i, tiles_j = triton.cdiv(p.n_i, p.config.rows), p.pad_j // p.tile_j
    splits = min(tiles_j, triton.cdiv(p.config.programs, p.count * tiles_i))
    j_per_split = triton.cdiv(tiles_j, splits) * p.tile_j
    splits = triton.cdiv(p.pad_j, j_per_split)
    with on_device(a):
        A, B, alpha, beta, bounds = score_operands(a, b, w2, local_index, pair_index, p)
        lse = torch.empty((p.total_i,), device=a.device, dtype=dtype)
        m, s = torch.empty((2, splits, p.total_i), device=a.device, dtype=dtype)
        scores = torch.empty((p.count, p.pad_i, p.pad_j), device=a.device, dtype=dtype) if keep else None
        logsumexp_kernel[(p.count * tiles_i, splits)](
            A, B, alpha, beta, b2, bounds, m, s, scores,
            p.n_i, p.n_j, p.total_j, p.pad_i, p.pad_j, A.stride(0), B.stride(0), j_per_split, p.total_i,
            BI=p.config.rows, BL=p.tile_j // 4, KEEP=keep, num_warps=p.config.warps, enable_fp_fusion=True,
        )  # fmt: skip
        merge_kernel[(triton.cdiv(p.total_i, 128),)](m, s, lse, p.total_i, splits, BLOCK=128, num_warps=4)
    return lse, scores


def pairwise_mlp_backward(
    grad_lse, lse, a, b, w2, b2, *, scores=None, local_index=None, pair_index=None, chunk_size=None, need=(True,) * 4
):  # fmt: skip
    """(da, db, dw2, db2) in their inputs' shapes and dtypes, None where ``need`` (a, b, w2, b2) says so.

    With ``G_ij = grad_i exp(u_ij - lse_i)``: ``da_j = w2 sum_i G_ij 1[a_j + b_i > 0]``, ``db_i`` alike, ``dw2`` from the same sums, ``db2 = sum G``.
    Rows that ``local_index`` or ``pair_index`` repeat receive the sum of their pairs' gradients, added in the order of the pairs.
    """
    p = problems_of(a, b, local_index, pair_index, chunk_size)
    need_a, need_b, need_w, need_b2 = need
    db2 = None
    if need_b2:
        # exp(u - lse) sums to one over j, so that sum G = sum grad; 0 lse carries a NaN of the forward pass
        db2 = (grad_lse + 0 * lse).sum().reshape(b2.shape).to(b2.dtype) if p.total_j else torch.zeros_like(b2)
    if p.total_i == 0 or p.total_j == 0:
        zeros = [x.new_zeros(x.shape) if wanted else None for x, wanted in zip((a, b, w2), need[:3], strict=True)]
        return (*zeros, db2)
    if not (need_a or need_b or need_w):
        return None, None, None, db2
    if chunk_size is None:
        pair_index = None
    elif chunk_size <= LONGEST:
        with on_device(a):
            if scores is None:
                _, scores = chunk_forward(a, b, w2, b2, local_index, pair_index, p.total_j, chunk_size, lse.dtype)
            da, db, dw = chunk_backward(
                grad_lse.contiguous(), a, b, w2, scores, local_index, pair_index, p.total_j, chunk_size, need
            )
            da = segment_sum(da, local_index, a) if need_a and local_index is not None else da
            db = segment_sum(db, pair_index, b) if need_b and pair_index is not None else db
        return da, db, dw.sum(0).to(w2.dtype) if need_w else None, db2
    with on_device(a):
        local = a if local_index is None else a.index_select(0, local_index)
        global_ = b if pair_index is None else b.index_select(0, pair_index)
        sums_a, sums_b = pair_sums(grad_lse, lse, a, b, w2, b2, scores, local, global_, local_index, pair_index, p, need)
        shift = centre(a, b, lse.dtype)
        da, dw_a = finish(sums_a, local, w2, -shift, a, local_index, need_a, need_w)
        db, dw_b = finish(sums_b, global_, w2, shift, b, pair_index, need_b, need_w)
    return da, db, (dw_a + dw_b).to(w2.dtype) if need_w else None, db2


def pair_sums(grad_lse, lse, a, b, w2, b2, scores, local, global_, local_index, pair_index, p, need):
    """ga [splits, P, H] and gb [splits, rows, H], each None where no gradient needs it, from weights G made block by block."""
    need_a, need_b, need_w, _ = need
    operands = (None,) * 5 if scores is not None else score_operands(a, b, w2, local_index, pair_index, p)
    A, B, alpha, beta, bounds = operands
    # whole problems where one fits the budget, else some rows of one problem
    row_bytes = 2 * p.pad_j * lse.dtype.itemsize
    block_i = min(p.pad_i, max(BLOCK_BYTES // row_bytes // 32, 1) * 32)
    block_problems = min(p.count, max(BLOCK_BYTES // (row_bytes * p.pad_i), 1))
    weights = torch.empty((2, block_problems * block_i * p.pad_j), device=a.device, dtype=lse.dtype)
    sums_a = sum_buffer(local, p.n_j, block_i, p, block_problems, lse) if need_a or need_w else None
    sums_b = sum_buffer(global_, block_i, p.n_j, p, block_problems, lse) if need_b or need_w else None
    grad_lse = grad_lse.contiguous()
    for problem in range(0, p.count, block_problems):
        blocks = min(block_problems, p.count - problem)
        for i in range(0, p.pad_i, block_i):
            rows = min(block_i, p.pad_i - i)
            weights_kernel[(blocks * rows // p.config.rows, p.pad_j // p.tile_j)](
                A, B, alpha, beta, b2, bounds, scores, grad_lse, lse, weights[0], weights[1],
                p.n_i, p.n_j, p.total_j, p.pad_i, p.pad_j,
                A.stride(0) if A is not None else 0, B.stride(0) if B is not None else 0, p.total_i, problem, i, rows,
                BI=p.config.rows, BL=p.tile_j // 4, KEPT=scores is not None, num_warps=p.config.warps, enable_fp_fusion=True,
            )  # fmt: skip
            if sums_a is not None:
                mask_sums(
                    sums_a, local, global_, weights[0], p.n_j, p.n_i, p.total_j, p.total_i, problem, blocks,
                    first_r=0, first_k=i, block_r=p.pad_j, block_k=rows, accumulate=i > 0,
                )  # fmt: skip
            if sums_b is not None:
                mask_sums(
                    sums_b, global_, local, weights[1], p.n_i, p.n_j, p.total_i, p.total_j, problem, blocks,
                    first_r=i, first_k=0, block_r=rows, block_k=p.pad_j, accumulate=False,
                )  # fmt: skip
    return sums_a, sums_b


def sum_buffer(x, n_r, n_k, p, block_problems, lse):
    """Uninitialised sums [splits, rows of x, H]: as many splits of k as it takes to fill the chip."""
    programs = block_problems * triton.cdiv(n_r, SUM_ROWS) * triton.cdiv(x.shape[1], SUM_UNITS)
    splits = max(1, min(p.config.programs // programs, n_k // 64))
    return torch.empty((splits, *x.shape), device=x.device, dtype=lse.dtype)


def mask_sums(out, x, y, g, n_r, n_k, total_r, total_k, problem, blocks, *, first_r, first_k, block_r, block_k, accumulate):
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
    splits, n_rows, H = sums.shape
    # in place where nothing is cast or added up afterwards: a program reads its rows before it writes them
    in_place = index is None and splits == 1 and like.dtype == sums.dtype
    dx = sums[0] if in_place else torch.empty((n_rows, H), device=x.device, dtype=sums.dtype if index is not None else like.dtype)
    programs = triton.cdiv(n_rows, FINISH_ROWS)
    dw = torch.empty((programs, H), device=x.device, dtype=sums.dtype) if need_w else sums
    finish_kernel[(programs, triton.cdiv(H, SUM_UNITS))](
        sums, x, w2, shift, dx, dw, x.stride(0), x.stride(1), H, n_rows, splits, FINISH_ROWS,
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
    segment_sum_kernel[(n_rows, triton.cdiv(H, SUM_UNITS))](x, order, start, out, H, BP=16, BH=SUM_UNITS, num_warps=1)
    return out
