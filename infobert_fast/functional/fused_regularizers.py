"""The Triton kernels around the critic, under autograd where they have a gradient.

Triton is imported at the first call. Eager code launches the kernels itself; where a graph is compiled the registered
operators do, whose boundary costs microseconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infobert_fast.functional.once import first_order

__all__ = ["anchor_indices", "club", "club_sampled", "freelb_start", "freelb_step", "select_anchors", "take_rows"]


def select_anchors(grad: Tensor, attention_mask: Tensor, cl: float, ch: float) -> Tensor:
    """As :func:`infobert_fast.functional.select_anchors`."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels import regularizer_operators as kernels
    else:
        from infobert_fast.kernels import anchors as kernels  # type: ignore[no-redef]
    return kernels.select_anchors(grad, attention_mask, cl, ch)


def anchor_indices(grad: Tensor, attention_mask: Tensor, cl: float, ch: float, count: int) -> Tensor:
    """As :func:`infobert_fast.functional.anchor_indices`, of whose result ``count`` is the size."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels import regularizer_operators as kernels
    else:
        from infobert_fast.kernels import anchors as kernels  # type: ignore[no-redef]
    return kernels.anchor_indices(grad, attention_mask, cl, ch, count)


class _Club(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor | None) -> Tensor:
        from infobert_fast.kernels.club import club_forward

        bound, centre, total = club_forward(rows, mask)
        ctx.save_for_backward(rows, mask, centre, total)
        return bound

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        from infobert_fast.kernels.club import club_backward

        return club_backward(grad, *ctx.saved_tensors), None


def club(rows: Tensor, mask: Tensor | None) -> Tensor:
    """As :func:`infobert_fast.functional.club`, of ``[M, d]`` and ``[M]``."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels.regularizer_operators import exact_club

        return exact_club(rows, mask)[0]
    return _Club.apply(rows, mask)


class _ClubSampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        from infobert_fast.kernels.sampled_club import sampled_club_forward

        bound, total = sampled_club_forward(rows, index, mask)
        ctx.save_for_backward(rows, index, mask, total)
        return bound

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from infobert_fast.kernels.sampled_club import sampled_club_backward

        return sampled_club_backward(grad, *ctx.saved_tensors), None, None


def club_sampled(rows: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """As :func:`infobert_fast.functional.club_sampled`, of ``[M, d]``, ``[M]`` and ``[M]``."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels import regularizer_operators

        return regularizer_operators.club_sampled(rows, index, mask)[0]
    return _ClubSampled.apply(rows, index, mask)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, distinct: bool) -> Tensor:
        ctx.save_for_backward(rows, index)
        ctx.distinct = distinct
        return rows.index_select(0, index)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from infobert_fast.kernels.rows import scatter_rows

        rows, index = ctx.saved_tensors
        return scatter_rows(grad, index, rows, ctx.distinct), None, None


def take_rows(rows: Tensor, index: Tensor, distinct: bool) -> Tensor:
    """As :func:`infobert_fast.functional.take_rows`."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels import regularizer_operators

        return regularizer_operators.take_rows(rows, index, distinct)
    return _TakeRows.apply(rows, index, distinct)


def freelb_start(
    attention_mask: Tensor,
    sentence_ids: Tensor | None,
    width: int,
    adv_init_mag: float,
    norm_type: str,
    seed: int,
    dtype: torch.dtype,
) -> Tensor:
    """The seeded start of :func:`infobert_fast.functional.freelb_init`; ``seed`` within int64."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels import regularizer_operators as kernels
    else:
        from infobert_fast.kernels import uniform as kernels  # type: ignore[no-redef]
    return kernels.freelb_start(attention_mask, sentence_ids, width, adv_init_mag, norm_type, seed, dtype)


def freelb_step(
    delta: Tensor, grad: Tensor, attention_mask: Tensor, adv_lr: float, adv_max_norm: float, norm_type: str
) -> Tensor:
    """As :func:`infobert_fast.functional.freelb_step`."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels import regularizer_operators as kernels
    else:
        from infobert_fast.kernels import freelb as kernels  # type: ignore[no-redef]
    return kernels.freelb_step(delta, grad, attention_mask, adv_lr, adv_max_norm, norm_type)
