"""Sampled CLUB, ``mean_m 1/2 ||y_m - y_r(m)||^2`` over the counted rows m, and its gradient without atomics.

    dy_m = grad / M ( [m counts] (y_m - y_r(m)) + sum_{k counts, r(k) = m} (y_m - y_k) )

The rows that chose m as their partner are found by a stable sort of the partners, once, and added in their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .club import counted
from .declaration import operator
from .launch import on_device
from .operands import accumulator


@triton.jit(do_not_specialize=["n_rows", "rows_per_program"])
def distance_kernel(
    y_ptr, partner_ptr, mask_ptr, square_ptr, count_ptr, y_row, y_unit, n_rows, n_units, rows_per_program,
    BR: tl.constexpr, BH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Sum of squared distances of a range of rows to their partners [programs], and how many of them count."""
    dtype = square_ptr.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * rows_per_program
    squares = tl.zeros([BR, BH], dtype=dtype)
    n = tl.zeros([BR], dtype=dtype)
    for r in range(0, rows_per_program, BR):
        o_r = first + r + tl.arange(0, BR)
        m_r = counted(mask_ptr, o_r, n_rows, MASKED)
        n += m_r.to(dtype)
        partner = tl.load(partner_ptr + o_r, mask=m_r, other=0)
        for h in range(0, n_units, BH):
            o_h = (h + tl.arange(0, BH)).to(tl.int64)
            m = m_r[:, None] & (o_h < n_units)[None, :]
            y = tl.load(y_ptr + o_r[:, None] * y_row + o_h[None, :] * y_unit, mask=m, other=0.0)
            other = tl.load(y_ptr + partner[:, None] * y_row + o_h[None, :] * y_unit, mask=m, other=0.0)
            apart = y.to(dtype) - other.to(dtype)
            squares += apart * apart
    tl.store(square_ptr + tl.program_id(0), tl.sum(tl.sum(squares, 1), 0))
    tl.store(count_ptr + tl.program_id(0), tl.sum(n, 0))


@triton.jit(do_not_specialize=["n_parts"])
def merge_distances_kernel(square_ptr, count_ptr, bound_ptr, total_ptr, n_parts, BP: tl.constexpr):
    """bound = half the sum over the count."""
    square = tl.zeros([BP], dtype=square_ptr.dtype.element_ty)
    n = tl.zeros([BP], dtype=square_ptr.dtype.element_ty)
    for p in range(0, n_parts, BP):
        o_p = p + tl.arange(0, BP)
        square += tl.load(square_ptr + o_p, mask=o_p < n_parts, other=0.0)
        n += tl.load(count_ptr + o_p, mask=o_p < n_parts, other=0.0)
    total = tl.sum(n, 0)
    tl.store(bound_ptr, tl.sum(square, 0) / (2.0 * total))
    tl.store(total_ptr, total)


@triton.jit(do_not_specialize=["n_rows"])
def sampled_backward_kernel(
    grad_ptr, y_ptr, partner_ptr, mask_ptr, order_ptr, start_ptr, total_ptr, dy_ptr, y_row, y_unit, n_rows, n_units,
    BH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One row of the gradient; ``order[start[m]:start[m + 1]]`` are the rows whose partner is m."""
    m = tl.program_id(0).to(tl.int64)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype = total_ptr.dtype.element_ty
    y_ptrs = y_ptr + o_h.to(tl.int64) * y_unit
    keep = counted(mask_ptr, m, n_rows, MASKED)
    start, end = tl.load(start_ptr + m), tl.load(start_ptr + m + 1)
    # conditions of a row as bounds of its units: the interpreter cannot widen a scalar condition
    m_keep = o_h < tl.where(keep, n_units, 0)
    m_used = o_h < tl.where(keep | (start < end), n_units, 0)
    y = tl.load(y_ptrs + m * y_row, mask=m_used, other=0.0).to(dtype)
    other = tl.load(y_ptrs + tl.load(partner_ptr + m, mask=keep, other=0) * y_row, mask=m_keep, other=0.0).to(dtype)
    total = tl.where(m_keep, y - other, 0.0)
    for p in range(start, end):
        total += y - tl.load(y_ptrs + tl.load(order_ptr + p) * y_row, mask=m_used, other=0.0).to(dtype)
    scale = tl.load(grad_ptr).to(dtype) / tl.load(total_ptr)
    dy = tl.where(m_used, total * scale, 0.0)
    tl.store(dy_ptr + m * n_units + o_h, dy, mask=o_h < n_units)


ROWS, UNITS, LEAST_ROWS, RANGES, PARTS, ROW_UNITS = 8, 256, 16, 1024, 256, 1024


def sampled_club_forward(y: Tensor, partner: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(bound [], total [1]) of rows ``y`` [M, d] and partners int64 [M]; rows with a ``mask`` [M] of zero do not count.

    No counted row gives NaN.
    """
    (n_rows, n_units), dtype = y.shape, accumulator(y)
    rows = max(LEAST_ROWS, triton.cdiv(triton.cdiv(n_rows, RANGES), ROWS) * ROWS)
    ranges = triton.cdiv(n_rows, rows)
    squares, counts = (torch.empty((ranges,), device=y.device, dtype=dtype) for _ in range(2))
    bound, total = (torch.empty(shape, device=y.device, dtype=dtype) for shape in ((), (1,)))
    partner, mask = partner.contiguous(), None if mask is None else mask.contiguous()
    with on_device(y):
        distance_kernel[(ranges,)](
            y, partner, mask, squares, counts, *y.stride(), n_rows, n_units, rows,
            BR=ROWS, BH=UNITS, MASKED=mask is not None, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        merge_distances_kernel[(1,)](
            squares, counts, bound, total, ranges, BP=PARTS, num_warps=1, enable_fp_fusion=True
        )
    return bound, total


def sampled_club_backward(grad, y, partner, mask, total):
    """The gradient of ``sampled_club_forward``'s bound in y, contiguous [M, d] in its dtype."""
    n_rows, n_units = y.shape
    dy = torch.empty((n_rows, n_units), device=y.device, dtype=y.dtype)
    partner, mask = partner.contiguous(), None if mask is None else mask.contiguous()
    # a row that does not count chooses nobody: it is sorted behind the last row's choosers
    chosen = partner if mask is None else torch.where(mask != 0, partner, n_rows)
    ordered, order = torch.sort(chosen, stable=True)
    start = torch.searchsorted(ordered, torch.arange(n_rows + 1, device=y.device))
    with on_device(y):
        units = min(ROW_UNITS, triton.next_power_of_2(max(n_units, 32)))
        sampled_backward_kernel[(n_rows, triton.cdiv(n_units, units))](
            grad, y, partner, mask, order, start, total, dy, *y.stride(), n_rows, n_units,
            BH=units, MASKED=mask is not None, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return dy


def _fake(y, partner, mask):
    return y.new_empty((), dtype=accumulator(y)), y.new_empty((1,), dtype=accumulator(y))


def _backward(grads, inputs, results, need):
    return (sampled_club_backward(*grads, *inputs, results[1]),)


club_sampled = operator("club_sampled", _fake, _backward)(sampled_club_forward)
