"""Row and column log-sum-exp of a matrix of dot products, and its gradients, one block of scores at a time.

    u_ij = scale <y_i, x_j>,      lse_i = logsumexp_j u_ij,      lse_j = logsumexp_i u_ij                [nats]

cuBLAS makes a block of products in fp32, one kernel reads it once for the partial (maximum, sum) of its rows and of its
columns, and a small one merges them with those of the blocks before. Backward the block is made again, and one pass
over it writes the weights

    W_ij = grad_i exp(u_ij - lse_i) + grad_j exp(u_ij - lse_j)
    dy = scale W x,     dx = scale W' y,     dscale = sum_ij W_ij <y_i, x_j>

in the dtype of the inputs, in which cuBLAS takes them (in place where that is fp32). Per score and pass 4 bytes are
written and 4 read; the weights of half precision add 2, and the two products read them. Memory is O(N d) plus one
block. No float atomics: two runs give the same bits.

``Terms`` say which scores the sums take: pairs of equal labels, say, are left out, i = j excepted.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .declaration import operator
from .launch import on_device
from .operands import accumulator
from .pairs import Terms
from .scores import clipped


@triton.jit
def score_tile(
    u_ptr, scale_ptr, label_i_ptr, label_j_ptr, o_i, o_j, n_i, n_j, u_row, first_i, first_j,
    LABELS: tl.constexpr, KEEP_PAIR: tl.constexpr,
):  # fmt: skip
    """(one tile of scaled scores, which of them count in their rows); rows past the end are zero."""
    m_i, m_j = o_i < n_i, o_j < n_j
    # up to the end of the row in memory, a multiple of 16: a mask that ends anywhere would split the vectors
    inside = m_i[:, None] & (o_j < u_row)[None, :]
    u = tl.load(u_ptr + o_i[:, None] * u_row + o_j[None, :], mask=inside, other=0.0)
    u *= tl.load(scale_ptr)
    m = tl.broadcast_to(m_j[None, :], u.shape)
    if LABELS:
        label_i = tl.load(label_i_ptr + o_i, mask=m_i, other=0)
        label_j = tl.load(label_j_ptr + o_j, mask=m_j, other=0)
        taken = label_i[:, None] != label_j[None, :]
        if KEEP_PAIR:
            taken = taken | ((first_i + o_i)[:, None] == (first_j + o_j)[None, :])
        m = m & taken
    return u, m


# counts are another batch's: not specialised; rows of scores begin at multiples of 16, whatever their length
@triton.jit(do_not_specialize=["n_i", "n_j", "row_step", "column_step"])
def partial_kernel(
    u_ptr, scale_ptr, label_i_ptr, label_j_ptr, row_m_ptr, row_s_ptr, column_m_ptr, column_s_ptr,
    n_i, n_j, u_row, first_i, first_j, row_step, column_step, clip,
    BI: tl.constexpr, BJ: tl.constexpr, LABELS: tl.constexpr, KEEP_PAIR: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Partial (maximum, sum of exponentials) of one tile, over its columns and, where asked, over its rows."""
    i_tile, j_tile = tl.program_id(1), tl.program_id(0)
    o_i, o_j = i_tile * BI + tl.arange(0, BI), j_tile * BJ + tl.arange(0, BJ)
    u, m = score_tile(
        u_ptr, scale_ptr, label_i_ptr, label_j_ptr, o_i, o_j, n_i, n_j, u_row, first_i, first_j, LABELS, KEEP_PAIR
    )
    if clip is not None:
        u = clipped(u, clip)
    if COLUMNS:
        # rows past the end: an addend of the multiplication above, where a mask of both sides costs a test a score
        u += tl.where(o_i < n_i, 0.0, float("-inf")).to(u.dtype)[:, None]
    u = tl.where(m, u, float("-inf"))
    # finite, so that a row that a tile leaves out whole is 0 exp(..) and not exp(-inf + inf)
    m_row = tl.maximum(tl.max(u, 1), -1e38)
    s_row = tl.sum(tl.exp(u - m_row[:, None]), 1)
    # slot 0 holds the blocks before
    p_row = (j_tile + 1).to(tl.int64) * row_step + o_i
    tl.store(row_m_ptr + p_row, m_row, mask=o_i < n_i)
    tl.store(row_s_ptr + p_row, s_row, mask=o_i < n_i)
    if COLUMNS:
        m_column = tl.maximum(tl.max(u, 0), -1e38)
        s_column = tl.sum(tl.exp(u - m_column[None, :]), 0)
        p_column = (i_tile + 1).to(tl.int64) * column_step + o_j
        tl.store(column_m_ptr + p_column, m_column, mask=o_j < n_j)
        tl.store(column_s_ptr + p_column, s_column, mask=o_j < n_j)


@triton.jit(do_not_specialize=["n", "n_slots", "step"])
def merge_partials_kernel(m_ptr, s_ptr, n, n_slots, step, BN: tl.constexpr, BK: tl.constexpr):
    """Slot 0 becomes (log sum_k s_k exp(m_k), 1), always in the order of the slots: the same bits in every run."""
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < n
    m = tl.full([BN], float("-inf"), dtype=m_ptr.dtype.element_ty)
    s = tl.zeros([BN], dtype=m_ptr.dtype.element_ty)
    for k in range(0, n_slots, BK):
        o_k = k + tl.arange(0, BK)
        mask = (o_k < n_slots)[:, None] & m_n[None, :]
        p = o_k.to(tl.int64)[:, None] * step + o_n[None, :]
        part_m = tl.load(m_ptr + p, mask=mask, other=float("-inf"))
        part_s = tl.load(s_ptr + p, mask=mask, other=0.0)
        m_new = tl.maximum(m, tl.max(part_m, 0))
        s = s * tl.exp(m - m_new) + tl.sum(part_s * tl.exp(part_m - m_new[None, :]), 0)
        m = m_new
    tl.store(m_ptr + o_n, m + tl.log(s), mask=m_n)


@triton.jit(do_not_specialize=["n_i", "n_j"])
def separable_weights_kernel(
    u_ptr, w_ptr, scale_ptr, label_i_ptr, label_j_ptr, grad_i_ptr, lse_i_ptr, grad_j_ptr, lse_j_ptr,
    n_i, n_j, u_row, first_i, first_j, clip,
    BI: tl.constexpr, BJ: tl.constexpr, LABELS: tl.constexpr, KEEP_PAIR: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """W of one tile, in the dtype of ``w``; ``w`` may be ``u``: a program reads its tile before it writes it."""
    o_i, o_j = tl.program_id(1) * BI + tl.arange(0, BI), tl.program_id(0) * BJ + tl.arange(0, BJ)
    u, m = score_tile(
        u_ptr, scale_ptr, label_i_ptr, label_j_ptr, o_i, o_j, n_i, n_j, u_row, first_i, first_j, LABELS, KEEP_PAIR
    )
    m_i, m_j = o_i < n_i, o_j < n_j
    grad_i = tl.load(grad_i_ptr + o_i, mask=m_i, other=0.0)
    lse_i = tl.load(lse_i_ptr + o_i, mask=m_i, other=0.0)
    if clip is not None:
        m = m & ((u > clip) | (u < -clip) == 0)
    w = grad_i[:, None] * tl.exp(u - lse_i[:, None])
    if COLUMNS:
        grad_j = tl.load(grad_j_ptr + o_j, mask=m_j, other=0.0)
        lse_j = tl.load(lse_j_ptr + o_j, mask=m_j, other=0.0)
        w += grad_j[None, :] * tl.exp(u - lse_j[None, :])
    if LABELS or clip is not None:
        w = tl.where(m, w, 0.0)
    w_ptrs = w_ptr + o_i[:, None] * u_row + o_j[None, :]
    tl.store(w_ptrs, w.to(w_ptr.dtype.element_ty), mask=m_i[:, None] & (o_j < u_row)[None, :])


EVERY = Terms()
# 64 scores a thread; partials weigh 1.6 % of the scores by rows, 4.7 % by rows and columns
ROWS, COLUMNS, WARPS = 64, 128, 4
MOST_TILES = 65_535  # of rows in a launch: the second dimension of a CUDA grid ends there
# scores of a block, 256 MiB: products are large enough for cuBLAS, and sums of gradients over blocks are read and
# written 8192 columns apart
BLOCK_SCORES = 2**26


def blocks(I, J):  # noqa: E741
    """Slices of at most BLOCK_SCORES pairs, as square as they can be: rows in turn, within one its columns in turn."""
    rows = min(I, whole_tiles(max(math.isqrt(BLOCK_SCORES), BLOCK_SCORES // J), ROWS), MOST_TILES * ROWS)
    columns = min(J, whole_tiles(max(BLOCK_SCORES // rows, 1), COLUMNS))
    for i in range(0, I, rows):
        for j in range(0, J, columns):
            yield slice(i, min(i + rows, I)), slice(j, min(j + columns, J))


def whole_tiles(n, tile):
    """The largest multiple of ``tile`` up to n, n itself below one: a block then begins where vectors are aligned."""
    return n // tile * tile or n


def product(a, b, dtype, out=None):
    """a b in ``dtype``: half-precision inputs and fp32 output on CUDA; widened first elsewhere, ROCm included."""
    if a.dtype == dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=dtype, out=out)
    return torch.mm(a.to(dtype), b.to(dtype), out=out)


def score_block(n_i, n_j, like, dtype):
    """Uninitialised [n_i, n_j] whose rows begin at multiples of 16: odd batches take the kernel of even ones."""
    return torch.empty((n_i, triton.cdiv(n_j, 16) * 16), device=like.device, dtype=dtype)[:, :n_j]


def accumulate(out, a, b):
    """out += a b, in one pass over ``out`` where no dtype is changed."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out += product(a, b, out.dtype)


def running(n, tiles, like, dtype):
    """(maximum, sum) [1 + tiles, n] whose slot 0, what was summed so far, is exp(-inf): nothing."""
    m, s = (torch.empty((1 + tiles, n), device=like.device, dtype=dtype) for _ in range(2))
    m[0].fill_(-torch.inf)
    s[0].fill_(1)
    return m, s


def merge(m, s, tiles):
    """Fold ``tiles`` slots into slot 0."""
    n = m.shape[1]
    merge_partials_kernel[(triton.cdiv(n, 32),)](
        m, s, n, 1 + tiles, m.stride(0), BN=32, BK=32, num_warps=4, enable_fp_fusion=True
    )


def separable_forward(x, y, scale, terms=EVERY, symmetric=False):
    """(lse_i [I], lse_j [J], empty unless ``symmetric``) of ``scale <y_i, x_j>``, fp32 (fp64 for fp64).

    ``x`` [J, d] and ``y`` [I, d] are fp32, bf16 or fp16 and may be strided; ``scale`` has one element.
    """
    dtype = accumulator(x)
    (J, _), I = x.shape, y.shape[0]  # noqa: E741
    scale, labels = scale.to(dtype), numbers(terms, y)
    with on_device(x):
        lse_i = torch.empty((I,), device=x.device, dtype=dtype)
        rows, columns = next(blocks(I, J))
        tiles_i, tiles_j = triton.cdiv(rows.stop, ROWS), triton.cdiv(columns.stop, COLUMNS)
        # running statistics of every column, block of columns by block of columns; of the rows of one block of rows
        column = [running(j.stop - j.start, tiles_i, x, dtype) for i, j in blocks(I, J) if symmetric and i.start == 0]
        row = None
        for i, j in blocks(I, J):
            n_i, n_j = i.stop - i.start, j.stop - j.start
            if j.start == 0:
                row = running(n_i, tiles_j, x, dtype)
            column_m, column_s = column[j.start // columns.stop] if symmetric else (row[0], row[1])
            u = product(y[i], x[j].t(), dtype, out=score_block(n_i, n_j, x, dtype))
            grid = (triton.cdiv(n_j, COLUMNS), triton.cdiv(n_i, ROWS))
            partial_kernel[grid](
                u, scale, *label_slices(labels, i, j), *row, column_m, column_s,
                n_i, n_j, u.stride(0), i.start, j.start, row[0].stride(0), column_m.stride(0), terms.clip,
                BI=ROWS, BJ=COLUMNS, LABELS=labels is not None, KEEP_PAIR=terms.keep_pair, COLUMNS=symmetric,
                num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
            merge(*row, grid[0])
            if symmetric:
                merge(column_m, column_s, grid[1])
            if j.stop == J:
                lse_i[i] = row[0][0]
            del u  # or two blocks would be held while the next one is made
        lse_j = torch.cat([m[0] for m, _ in column]) if symmetric else lse_i.new_empty((0,))
        return lse_i, lse_j


def separable_backward(
    grad_i, grad_j, lse_i, lse_j, x, y, scale, terms=EVERY, symmetric=False, need=(True, True, True)
):  # fmt: skip
    """(dx, dy, dscale) given the gradients of both results of ``separable_forward``; None where not needed.

    dx and dy are fp32 (fp64 for fp64), for others to be added to them before anything is rounded.
    """
    need_x, need_y, need_scale = need
    dtype = lse_i.dtype
    (J, _), I = x.shape, y.shape[0]  # noqa: E741
    wide, labels = scale.to(dtype), numbers(terms, y)
    sums_y = need_y or (need_scale and not need_x)
    factor = gradient_factor(grad_i, grad_j, x.dtype)
    grad_i, grad_j = (grad.to(dtype).contiguous() * factor for grad in (grad_i, grad_j))
    with on_device(x):
        sum_x = torch.zeros(x.shape, device=x.device, dtype=dtype) if need_x else None
        sum_y = torch.zeros(y.shape, device=y.device, dtype=dtype) if sums_y else None
        for i, j in blocks(I, J) if need_x or sums_y else ():
            n_i, n_j = i.stop - i.start, j.stop - j.start
            u = product(y[i], x[j].t(), dtype, out=score_block(n_i, n_j, x, dtype))
            w = u if x.dtype == dtype else score_block(n_i, n_j, x, x.dtype)
            of_j = (grad_j[j], lse_j[j]) if symmetric else (grad_i, lse_i)
            separable_weights_kernel[(triton.cdiv(n_j, COLUMNS), triton.cdiv(n_i, ROWS))](
                u, w, wide, *label_slices(labels, i, j), grad_i[i], lse_i[i], *of_j,
                n_i, n_j, u.stride(0), i.start, j.start, terms.clip,
                BI=ROWS, BJ=COLUMNS, LABELS=labels is not None, KEEP_PAIR=terms.keep_pair, COLUMNS=symmetric,
                num_warps=WARPS, enable_fp_fusion=True,
            )  # fmt: skip
            if need_x:
                accumulate(sum_x[j], w.t(), y[i])
            if sums_y:
                accumulate(sum_y[i], w, x[j])
            del u, w
        dscale = None
        if need_scale:
            # sum_ij W_ij <y_i, x_j>, from whichever sum over pairs is there
            dots = sum_y * y if sum_y is not None else sum_x * x
            dscale = (dots.sum() / factor).reshape(scale.shape).to(scale.dtype)
        back = wide.reshape(()) / factor
        return sum_x.mul_(back) if need_x else None, sum_y.mul_(back) if need_y else None, dscale


def numbers(terms, y):
    """(of rows, of columns) that say which scores are left out; None where none is."""
    if terms.columns is None:
        return None
    rows = torch.arange(y.shape[0], device=y.device) if terms.rows is None else terms.rows
    return rows.contiguous(), terms.columns.contiguous()


def label_slices(labels, i, j):
    return (None, None) if labels is None else (labels[0][i], labels[1][j])


def gradient_factor(grad_i, grad_j, dtype):
    """What gradients are multiplied by before they become weights: W of the order of grad / N would underflow in fp16,
    whose smallest normal number is 6e-5. The largest gradient becomes 2^12; a weight holds at most two of them.
    """
    if dtype != torch.float16:
        return 1.0
    peak = torch.cat([grad_i.detach(), grad_j.detach()]).float().abs().max()
    return 2.0**12 / peak.clamp(min=1e-30)


def _fake(x, y, scale, columns, rows, keep_pair, clip, symmetric, dtype):
    return y.new_empty((y.shape[0],)), x.new_empty((x.shape[0] if symmetric else 0,))


def _backward(grads, inputs, results, need):
    x, y, scale, *terms, symmetric, dtype = inputs
    # exact: x and y hold values of this dtype
    return separable_backward(*grads, *results, x.to(dtype), y.to(dtype), scale, Terms(*terms), symmetric, need)


@operator("separable", _fake, _backward, outputs=2, gradients=3)
def _logsumexp(
    x: Tensor, y: Tensor, scale: Tensor, columns: Tensor | None, rows: Tensor | None, keep_pair: bool,
    clip: float | None, symmetric: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    terms = Terms(columns, rows, keep_pair, clip)
    return separable_forward(x.to(dtype), y.to(dtype), scale, terms, symmetric)


def logsumexp(x, y, scale, terms, symmetric, dtype):
    """``separable_forward`` of fp32 (fp64) rows that hold values of ``dtype``, differentiable in x, y and scale."""
    return _logsumexp(x, y, scale, *terms, symmetric, dtype)
