"""The gradient of gathered rows, ``rows[index]``, in one pass over the rows instead of zeros and an addition.

Gathering itself is PyTorch's ``index_select``, which moves no byte too many. Where the index repeats no row, as that of
anchors, a row's gradient is one row of the output's or zero; otherwise the rows are sorted and added in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .declaration import operator
from .launch import on_device
from .mask_sums import segment_sum
from .operands import accumulator


@triton.jit(do_not_specialize=["n_index"])
def inverse_kernel(index_ptr, inverse_ptr, n_index, BP: tl.constexpr):
    """inverse[index[p]] = p."""
    o_p = tl.program_id(0) * BP + tl.arange(0, BP)
    row = tl.load(index_ptr + o_p, mask=o_p < n_index, other=0)
    tl.store(inverse_ptr + row, o_p, mask=o_p < n_index)


@triton.jit(do_not_specialize=["n_rows"])
def scatter_rows_kernel(
    grad_ptr, inverse_ptr, out_ptr, grad_row, grad_unit, n_rows, n_units, BR: tl.constexpr, BH: tl.constexpr
):
    """out[r] = grad[inverse[r]], zero where inverse[r] is -1: every row is written once."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_h = tl.program_id(1) * BH + tl.arange(0, BH)
    m_r, m_h = o_r < n_rows, o_h < n_units
    source = tl.load(inverse_ptr + o_r, mask=m_r, other=-1).to(tl.int64)
    offsets = source[:, None] * grad_row + o_h.to(tl.int64)[None, :] * grad_unit
    grad = tl.load(grad_ptr + offsets, mask=(source >= 0)[:, None] & m_h[None, :], other=0.0)
    tl.store(out_ptr + o_r[:, None] * n_units + o_h[None, :], grad, mask=m_r[:, None] & m_h[None, :])


ROWS, UNITS, INDICES = 8, 256, 1024


def scatter_rows(grad, index, like, distinct):
    """[rows, d] as ``like``: row r is the sum of the rows p of ``grad`` [P, d] with ``index[p] = r``, else zero.

    ``distinct`` says that no r has two.
    """
    n_rows, n_units = like.shape
    index = index.contiguous()
    with on_device(like):
        if not distinct:
            return segment_sum(grad.to(accumulator(grad)).contiguous(), index, like)
        out = torch.empty((n_rows, n_units), device=like.device, dtype=like.dtype)
        inverse = torch.full((n_rows,), -1, device=like.device, dtype=torch.int32)
        inverse_kernel[(triton.cdiv(index.shape[0], INDICES),)](
            index, inverse, index.shape[0], BP=INDICES, num_warps=4, enable_fp_fusion=True
        )
        scatter_rows_kernel[(triton.cdiv(n_rows, ROWS), triton.cdiv(n_units, UNITS))](
            grad, inverse, out, *grad.stride(), n_rows, n_units, BR=ROWS, BH=UNITS, num_warps=4, enable_fp_fusion=True
        )
    return out


def _fake(x, index, distinct):
    return x.new_empty((index.shape[0], x.shape[1]))


def _backward(grads, inputs, results, need):
    (grad,), (x, index, distinct) = grads, inputs
    return (scatter_rows(grad, index, x, distinct),)


@operator("take_rows", _fake, _backward)
def take_rows(x: Tensor, index: Tensor, distinct: bool) -> Tensor:
    """``x[index]`` with the gradient of ``scatter_rows``."""
    return x.index_select(0, index)
