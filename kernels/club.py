"""CLUB over all pairs in closed form, ``mean_m ||y_m - mean(y)||^2`` over the counted rows, and its gradient.

One pass over y: each program runs Welford's recurrence down its rows, a few lanes to a column, and what programs found
is merged by a second kernel in a fixed order. Everything is relative to the first counted row, whose difference from
the others is exact where they share an offset, so that an offset costs no digits in the value or in the gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .declaration import operator
from .launch import on_device
from .operands import accumulator


@triton.jit
def counted(mask_ptr, o_r, n_rows, MASKED: tl.constexpr):
    """Which of the rows o_r exist and count."""
    m_r = o_r < n_rows
    if MASKED:
        m_r = tl.load(mask_ptr + o_r, mask=m_r, other=0).to(tl.float32) != 0
    return m_r


@triton.jit
def first_counted(y_ptrs, mask_ptr, m_h, y_row, n_rows, BM: tl.constexpr, MASKED: tl.constexpr):
    """The first row that counts, the last one where none does. Nearly always it is the very first."""
    if not MASKED:
        return tl.load(y_ptrs, mask=m_h, other=0.0)
    found, r = n_rows, 0
    while (found == n_rows) & (r < n_rows):
        o_r = r + tl.arange(0, BM)
        found = tl.min(tl.where(counted(mask_ptr, o_r, n_rows, MASKED), o_r, n_rows), 0)
        r += BM
    row = tl.minimum(found, n_rows - 1).to(tl.int64)  # if none counts, what it holds is not used either
    return tl.load(y_ptrs + row * y_row, mask=m_h, other=0.0)


# rows differ from batch to batch: not specialised, or their factors would mean a compilation
@triton.jit(do_not_specialize=["n_rows", "rows_per_program"])
def moments_kernel(
    y_ptr, mask_ptr, count_ptr, mean_ptr, square_ptr, centre_ptr,
    y_row, y_unit, n_rows, n_units, rows_per_program,
    BR: tl.constexpr, BH: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Of a range of rows: how many count [programs], their mean [programs, units] relative to the first counted row of
    all, which goes to centre[0], and the sum of squares about that mean [programs, tiles of units].
    """
    i_range, i_tile = tl.program_id(0), tl.program_id(1)
    o_h = i_tile * BH + tl.arange(0, BH)
    m_h = o_h < n_units
    dtype = mean_ptr.dtype.element_ty
    y_ptr += o_h.to(tl.int64) * y_unit
    centre = first_counted(y_ptr, mask_ptr, m_h, y_row, n_rows, BM, MASKED).to(dtype)
    n = tl.zeros([BR], dtype=dtype)
    mean = tl.zeros([BR, BH], dtype=dtype)
    square = tl.zeros([BR, BH], dtype=dtype)
    first = i_range.to(tl.int64) * rows_per_program
    for r in range(0, rows_per_program, BR):
        o_r = first + r + tl.arange(0, BR)
        m_r = counted(mask_ptr, o_r, n_rows, MASKED)
        y = tl.load(y_ptr[None, :] + o_r[:, None] * y_row, mask=m_r[:, None] & m_h[None, :], other=0.0).to(dtype)
        one = m_r.to(dtype)
        n += one
        step = (y - centre[None, :]) - mean
        mean += step * (one / tl.maximum(n, 1.0))[:, None]
        square += step * ((y - centre[None, :]) - mean) * one[:, None]
    total = tl.sum(n, 0)
    middle = tl.sum(mean * n[:, None], 0) / tl.maximum(total, 1.0)
    mean -= middle[None, :]
    squares = tl.where(m_h[None, :], square + mean * mean * n[:, None], 0.0)
    tl.store(mean_ptr + i_range.to(tl.int64) * n_units + o_h, middle, mask=m_h)
    tl.store(square_ptr + i_range.to(tl.int64) * tl.num_programs(1) + i_tile, tl.sum(tl.sum(squares, 1), 0))
    if i_tile == 0:
        tl.store(count_ptr + i_range, total)
    if i_range == 0:
        tl.store(centre_ptr + o_h, centre, mask=m_h)


@triton.jit(do_not_specialize=["n_ranges"])
def merge_moments_kernel(
    count_ptr, mean_ptr, square_ptr, centre_ptr, total_ptr, part_ptr, n_ranges, n_units,
    BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """centre[1] = mean relative to centre[0]; part = this tile's share of the bound; total = counted rows."""
    i_tile = tl.program_id(0)
    o_h = i_tile * BH + tl.arange(0, BH)
    m_h = o_h < n_units
    dtype = mean_ptr.dtype.element_ty
    n = tl.zeros([BR], dtype=dtype)
    weighted = tl.zeros([BR, BH], dtype=dtype)
    for r in range(0, n_ranges, BR):
        o_r = (r + tl.arange(0, BR)).to(tl.int64)
        n_r = tl.load(count_ptr + o_r, mask=o_r < n_ranges, other=0.0)
        m = (o_r < n_ranges)[:, None] & m_h[None, :]
        n += n_r
        weighted += n_r[:, None] * tl.load(mean_ptr + o_r[:, None] * n_units + o_h[None, :], mask=m, other=0.0)
    total = tl.sum(n, 0)
    mean = tl.sum(weighted, 0) / total
    square = tl.zeros([BR], dtype=dtype)
    for r in range(0, n_ranges, BR):
        o_r = (r + tl.arange(0, BR)).to(tl.int64)
        n_r = tl.load(count_ptr + o_r, mask=o_r < n_ranges, other=0.0)
        m = (o_r < n_ranges)[:, None] & m_h[None, :]
        apart = tl.load(mean_ptr + o_r[:, None] * n_units + o_h[None, :], mask=m, other=0.0) - mean[None, :]
        square += n_r * tl.sum(tl.where(m, apart * apart, 0.0), 1)
        square += tl.load(square_ptr + o_r * tl.num_programs(0) + i_tile, mask=o_r < n_ranges, other=0.0)
    tl.store(centre_ptr + n_units + o_h, mean, mask=m_h)
    tl.store(part_ptr + i_tile, tl.sum(square, 0) / total)
    if i_tile == 0:
        tl.store(total_ptr, total)


@triton.jit(do_not_specialize=["n_rows"])
def club_backward_kernel(
    grad_ptr, y_ptr, mask_ptr, centre_ptr, total_ptr, dy_ptr, y_row, y_unit, n_rows, n_units,
    BR: tl.constexpr, BH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """dy = 2 grad / M (y - mean), zero where a row does not count."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    m_h = o_h < n_units
    dtype = centre_ptr.dtype.element_ty
    m_r = counted(mask_ptr, o_r, n_rows, MASKED)
    scale = 2.0 * tl.load(grad_ptr).to(dtype) / tl.load(total_ptr)
    origin = tl.load(centre_ptr + o_h, mask=m_h, other=0.0)
    mean = tl.load(centre_ptr + n_units + o_h, mask=m_h, other=0.0)
    m = m_r[:, None] & m_h[None, :]
    y = tl.load(y_ptr + o_r[:, None] * y_row + o_h.to(tl.int64)[None, :] * y_unit, mask=m, other=0.0).to(dtype)
    dy = tl.where(m_r[:, None], ((y - origin[None, :]) - mean[None, :]) * scale, 0.0)
    tl.store(dy_ptr + o_r[:, None] * n_units + o_h[None, :], dy, mask=(o_r < n_rows)[:, None] & m_h[None, :])


# Sixteen lanes a column in four warps; at most RANGES ranges of rows, so that merging them stays a small kernel.
ROWS, UNITS, MASK, RANGES, LEAST_ROWS, BACKWARD_ROWS = 16, 128, 64, 128, 32, 32


def club_forward(y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(bound [], centre [2, d], total [1]) of rows ``y`` [M, d], those with a ``mask`` [M] of zero left out.

    ``centre`` holds the first counted row and the mean relative to it, ``total`` how many rows count; no row gives NaN.
    """
    (n_rows, n_units), dtype = y.shape, accumulator(y)
    rows = max(LEAST_ROWS, triton.cdiv(triton.cdiv(n_rows, RANGES), ROWS) * ROWS)
    ranges, tiles = triton.cdiv(n_rows, rows), triton.cdiv(n_units, UNITS)
    counts, squares, parts, total = (
        torch.empty(shape, device=y.device, dtype=dtype) for shape in ((ranges,), (ranges, tiles), (tiles,), (1,))
    )
    means, centre = (torch.empty((n, n_units), device=y.device, dtype=dtype) for n in (ranges, 2))
    mask = None if mask is None else mask.contiguous()
    with on_device(y):
        moments_kernel[(ranges, tiles)](
            y, mask, counts, means, squares, centre, *y.stride(), n_rows, n_units, rows,
            BR=ROWS, BH=UNITS, BM=MASK, MASKED=mask is not None, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        merge_moments_kernel[(tiles,)](
            counts,
            means,
            squares,
            centre,
            total,
            parts,
            ranges,
            n_units,
            BR=ROWS,
            BH=UNITS,
            num_warps=4,
            enable_fp_fusion=True,
        )
        return parts.sum(), centre, total


def club_backward(grad, y, mask, centre, total):
    """The gradient of ``club_forward``'s bound in y, contiguous [M, d] in its dtype."""
    n_rows, n_units = y.shape
    dy = torch.empty((n_rows, n_units), device=y.device, dtype=y.dtype)
    mask = None if mask is None else mask.contiguous()
    with on_device(y):
        club_backward_kernel[(triton.cdiv(n_rows, BACKWARD_ROWS), triton.cdiv(n_units, UNITS))](
            grad, y, mask, centre, total, dy, *y.stride(), n_rows, n_units,
            BR=BACKWARD_ROWS, BH=UNITS, MASKED=mask is not None, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return dy


def _fake(y, mask):
    dtype = accumulator(y)
    return y.new_empty((), dtype=dtype), y.new_empty((2, y.shape[1]), dtype=dtype), y.new_empty((1,), dtype=dtype)


def _backward(grads, inputs, results, need):
    return (club_backward(*grads, *inputs, *results[1:]),)


club = operator("club", _fake, _backward)(club_forward)
