"""The kernels as registered operators: what ``torch.compile`` sees, so that a graph with a dynamic number of pairs
stays whole.

Crossing the boundary of a registered operator costs microseconds, so eager code calls ``pairwise_mlp.py`` directly.
The operator returns ``lse`` alone; its backward recomputes the scores, whose shape would depend on a memory budget.
"""

import torch
from torch import Tensor

from .chunk_bound import chunk_bound
from .operands import accumulator
from .pairwise_mlp import pairwise_mlp_backward, pairwise_mlp_forward


@torch.library.custom_op("infobert_fast::pairwise_mlp", mutates_args=())
def pairwise_mlp(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor,
    local_index: Tensor | None = None, pair_index: Tensor | None = None, chunk_size: int | None = None,
    precision: str = "exact",
) -> Tensor:  # fmt: skip
    """``lse`` of ``pairwise_mlp_forward``, differentiable in a, b, w2 and b2."""
    return pairwise_mlp_forward(
        a,
        b,
        w2,
        b2,
        local_index=local_index,
        pair_index=pair_index,
        chunk_size=chunk_size,
        precision=precision,
        keep_scores=False,
    )[0]


@pairwise_mlp.register_fake
def _(a, b, w2, b2, local_index=None, pair_index=None, chunk_size=None, precision="exact"):
    pairs = a.shape[0] if local_index is None else local_index.shape[0]
    return a.new_empty((b.shape[0] if chunk_size is None else pairs,), dtype=accumulator(a))


@torch.library.custom_op("infobert_fast::pairwise_mlp_backward", mutates_args=())
def pairwise_mlp_gradients(
    grad_lse: Tensor, lse: Tensor, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor,
    local_index: Tensor | None, pair_index: Tensor | None, chunk_size: int | None, precision: str, need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``pairwise_mlp_backward`` with an empty tensor where a gradient is not needed."""
    gradients = pairwise_mlp_backward(
        grad_lse,
        lse,
        a,
        b,
        w2,
        b2,
        local_index=local_index,
        pair_index=pair_index,
        chunk_size=chunk_size,
        precision=precision,
        need=need,
    )
    da, db, dw2, db2 = (a.new_empty((0,)) if gradient is None else gradient for gradient in gradients)
    return da, db, dw2, db2


@pairwise_mlp_gradients.register_fake
def _(grad_lse, lse, a, b, w2, b2, local_index, pair_index, chunk_size, precision, need):
    return tuple(
        x.new_empty(x.shape) if wanted else a.new_empty((0,)) for x, wanted in zip((a, b, w2, b2), need, strict=True)
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.chunk_size, ctx.precision = inputs
    ctx.save_for_backward(output, *tensors)


def _backward(ctx, grad_lse):
    need = list(ctx.needs_input_grad[:4])
    gradients = pairwise_mlp_gradients(grad_lse, *ctx.saved_tensors, ctx.chunk_size, ctx.precision, need)
    return *(g if wanted else None for g, wanted in zip(gradients, need, strict=True)), None, None, None, None


pairwise_mlp.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("infobert_fast::chunk_info_nce", mutates_args=())
def chunk_info_nce(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor,
    local_index: Tensor | None, pair_index: Tensor | None, chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``chunk_bound`` with all gradients: what a graph will need of them is not known where it is called."""
    return chunk_bound(a, b, w2, b2, local_index, pair_index, chunk_size, (True,) * 4)


@chunk_info_nce.register_fake
def _(a, b, w2, b2, local_index, pair_index, chunk_size):
    return a.new_empty(()), *(x.new_empty(x.shape) for x in (a, b, w2, b2))


def _save_gradients(ctx, inputs, output):
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*gradients)


def _scale_gradients(ctx, grad_bound, *_):
    wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
    return *(gradient * grad_bound if needed else None for gradient, needed in wanted), None, None, None


chunk_info_nce.register_autograd(_scale_gradients, setup_context=_save_gradients)
