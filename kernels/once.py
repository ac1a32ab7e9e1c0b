"""What hand-written gradients need: their own precision under autocast; second derivatives refused, not wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["first_order"]

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a second derivative was asked for, through a gradient that is differentiable once; "
            "pass `implementation='reference'`, whose gradients autograd makes, or leave out `create_graph=True`"
        )


def first_order(backward: Backward) -> Backward:
    """Decorate a Function's ``backward``: it computes in the dtypes that it chose itself, even if called within
    autocast, and under ``create_graph=True`` whoever differentiates its result is refused.

    Stronger than torch's ``once_differentiable``, which refuses only where the *incoming* gradient has a graph (that of
    ``bound.sum()`` has none, and its second derivative would silently count as 0), and only whoever calls
    ``.backward()``: ``autograd.grad`` walks from the result to the inputs alone, so the refusal must lie between them.
    """

    @functools.wraps(backward)
    def guarded(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            return backward(ctx, *incoming)
        device = incoming[0].device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return guarded(ctx, *incoming)
        if not torch.is_grad_enabled():
            return backward(ctx, *incoming)
        with torch.no_grad():
            gradients = backward(ctx, *incoming)
        sources = [t for t in (*ctx.saved_tensors, *incoming) if t is not None and t.requires_grad]
        return tuple(None if gradient is None else _Refusal.apply(gradient, *sources) for gradient in gradients)

    return guarded
