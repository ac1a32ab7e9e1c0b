"""The dot-product kernels as registered operators: what ``torch.compile`` sees. See ``operators.py``.

Inputs and gradients are fp32 (fp64 for fp64); ``dtype`` is what the products are made in.
"""

import torch
from torch import Tensor

from .separable import separable_backward, separable_forward


@torch.library.custom_op("infobert_fast::separable", mutates_args=())
def separable(
    x: Tensor, y: Tensor, scale: Tensor, labels: Tensor | None, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``separable_forward``, differentiable in x, y and scale."""
    return separable_forward(x.to(dtype), y.to(dtype), scale, labels, symmetric)


@separable.register_fake
def _(x, y, scale, labels, symmetric, dtype):
    return y.new_empty((y.shape[0],)), x.new_empty((x.shape[0] if symmetric else 0,))


@torch.library.custom_op("infobert_fast::separable_backward", mutates_args=())
def separable_gradients(
    grad_i: Tensor, grad_j: Tensor, lse_i: Tensor, lse_j: Tensor, x: Tensor, y: Tensor, scale: Tensor,
    labels: Tensor | None, symmetric: bool, dtype: torch.dtype, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``separable_backward`` with an empty tensor where a gradient is not needed."""
    x, y = x.to(dtype), y.to(dtype)
    gradients = separable_backward(grad_i, grad_j, lse_i, lse_j, x, y, scale, labels, symmetric, need)
    dx, dy, dscale = (lse_i.new_empty((0,)) if gradient is None else gradient for gradient in gradients)
    return dx, dy, dscale


@separable_gradients.register_fake
def _(grad_i, grad_j, lse_i, lse_j, x, y, scale, labels, symmetric, dtype, need):
    return tuple(
        t.new_empty(t.shape) if wanted else lse_i.new_empty((0,)) for t, wanted in zip((x, y, scale), need, strict=True)
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.symmetric, ctx.dtype = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx, grad_i, grad_j):
    need = list(ctx.needs_input_grad[:3])
    gradients = separable_gradients(grad_i, grad_j, *ctx.saved_tensors, ctx.symmetric, ctx.dtype, need)
    return *(g if wanted else None for g, wanted in zip(gradients, need, strict=True)), None, None, None


separable.register_autograd(_backward, setup_context=_setup_context)
