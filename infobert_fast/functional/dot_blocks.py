"""Row and column log-sum-exp of a matrix of dot products in plain PyTorch: the twin of ``kernels/separable.py``.

``u_ij = scale <y_i, x_j>`` is made one block at a time, and again for the gradient: memory is O(N d) plus a block. Up
to ``KEPT_BLOCKS`` blocks are kept for the gradient instead, which then needs no product more than autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from infobert_fast.kernels.once import first_order
from infobert_fast.kernels.pairs import Terms

__all__ = ["logsumexp"]


KEPT_BLOCKS = 16  # 64 MiB of scores on a CPU


def block_scores(device: torch.device) -> int:
    """Scores of one block: 4 MiB on a CPU, within its cache; 256 MiB elsewhere, where launches weigh more."""
    return 1 << (20 if device.type == "cpu" else 26)


def _blocks(y: Tensor, x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cover I x J by slices of at most one block, as square as they can be."""
    I, J, scores = y.shape[0], x.shape[0], block_scores(x.device)  # noqa: E741
    rows = min(I, max(math.isqrt(scores), scores // J))
    columns = min(J, max(scores // rows, 1))
    for i in range(0, I, rows):
        for j in range(0, J, columns):
            yield slice(i, min(i + rows, I)), slice(j, min(j + columns, J))


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a b`` in ``dtype``: half-precision inputs and float32 output on CUDA; widened first elsewhere."""
    if a.dtype == dtype:
        return torch.mm(a, b)
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a.to(dtype), b.to(dtype))


def _scores(x: Tensor, y: Tensor, scale: Tensor, i: slice, j: slice) -> Tensor:
    return _product(y[i], x[j].t(), scale.dtype).mul_(scale)


def separable_forward(
    x: Tensor, y: Tensor, scale: Tensor, terms: Terms, symmetric: bool, kept: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """``(lse_i [I], lse_j [J])`` in float32 at least; the second is empty unless ``symmetric``. Blocks of scores join
    ``kept``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.device.type == "cpu":
        x, y = x.to(dtype), y.to(dtype)  # once, not once a block
    scale = scale.to(dtype)
    lse_i = x.new_full((y.shape[0],), -torch.inf, dtype=dtype)
    lse_j = x.new_full((x.shape[0] if symmetric else 0,), -torch.inf, dtype=dtype)
    for i, j in _blocks(y, x):
        u = _scores(x, y, scale, i, j)
        if kept is not None:
            kept.append(u)
        u = terms.take(u, i, j)
        lse_i[i] = torch.logaddexp(lse_i[i], torch.logsumexp(u, 1))
        if symmetric:
            lse_j[j] = torch.logaddexp(lse_j[j], torch.logsumexp(u, 0))
    return lse_i, lse_j


def separable_backward(
    grad_i: Tensor,
    grad_j: Tensor,
    lse_i: Tensor,
    lse_j: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    terms: Terms,
    symmetric: bool,
    need: Sequence[bool],
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``(dx, dy, dscale)``, None where not needed: ``dy = scale W x``, ``dx = scale W' y`` with
    ``W_ij = grad_i exp(u_ij - lse_i) + grad_j exp(u_ij - lse_j)``, in float32 at least.
    """
    need_x, need_y, need_scale = need
    dtype = lse_i.dtype
    wide_x, wide_y, wide = x.to(dtype), y.to(dtype), scale.to(dtype)
    sum_x, sum_y = torch.zeros_like(wide_x), torch.zeros_like(wide_y)
    sums_y = need_y or (need_scale and not need_x)
    for n, (i, j) in enumerate(_blocks(y, x)) if need_x or sums_y else ():
        u = kept[n] if kept else _scores(wide_x, wide_y, wide, i, j)
        taken = terms.take(u, i, j)
        w = torch.exp(taken - lse_i[i].unsqueeze(1)).mul_(grad_i[i].unsqueeze(1))
        if symmetric:
            w.add_(taken.sub(lse_j[j]).exp_().mul_(grad_j[j]))
        w = terms.weigh(w, u, i, j)
        if need_x:
            sum_x[j].addmm_(w.t(), wide_y[i])
        if sums_y:
            sum_y[i].addmm_(w, wide_x[j])
    # sum_ij W_ij <y_i, x_j>, from whichever sum over pairs is there
    dots = (sum_y * wide_y if sums_y else sum_x * wide_x).sum() if need_scale else None
    return (
        sum_x.mul_(wide) if need_x else None,
        sum_y.mul_(wide) if need_y else None,
        None if dots is None else dots.reshape(scale.shape).to(scale.dtype),
    )


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        columns: Tensor | None,
        rows: Tensor | None,
        keep_pair: bool,
        clip: float | None,
        symmetric: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        x, y = x.to(dtype), y.to(dtype)  # exact: they hold values of this dtype
        fit = x.shape[0] * y.shape[0] <= KEPT_BLOCKS * block_scores(x.device)
        kept: list[Tensor] | None = [] if fit and any(ctx.needs_input_grad[:3]) else None
        lse_i, lse_j = separable_forward(x, y, scale, Terms(columns, rows, keep_pair, clip), symmetric, kept)
        ctx.save_for_backward(lse_i, lse_j, x, y, scale, columns, rows, *(kept or ()))
        ctx.options = keep_pair, clip, symmetric
        return lse_i, lse_j

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_i: Tensor, grad_j: Tensor) -> tuple[Tensor | None, ...]:
        lse_i, lse_j, x, y, scale, columns, rows, *kept = ctx.saved_tensors
        keep_pair, clip, symmetric = ctx.options
        terms = Terms(columns, rows, keep_pair, clip)
        operands = grad_i, grad_j, lse_i, lse_j, x, y, scale
        gradients = separable_backward(*operands, terms, symmetric, ctx.needs_input_grad[:3], kept)
        return *gradients, *(None,) * 6


def logsumexp(
    x: Tensor, y: Tensor, scale: Tensor, terms: Terms, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """:func:`separable_forward` of wide rows that hold values of ``dtype``, differentiable in x, y and scale."""
    if terms.rows is not None and terms.rows is terms.columns and torch.compiler.is_compiling():
        terms = terms._replace(rows=terms.rows.clone())  # Dynamo takes no tensor twice
    lse: tuple[Tensor, Tensor] = _Logsumexp.apply(x, y, scale, *terms, symmetric, dtype)
    return lse
