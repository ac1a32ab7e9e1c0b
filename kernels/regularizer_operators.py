"""The kernels around the critic as registered operators: what ``torch.compile`` sees. Eager code calls them itself."""

import torch
from torch import Tensor

from . import anchors, club, freelb, rows, sampled_club, uniform
from .operands import accumulator


@torch.library.custom_op("infobert_fast::select_anchors", mutates_args=())
def select_anchors(grad: Tensor, attention_mask: Tensor, cl: float, ch: float) -> Tensor:
    """``anchors.select_anchors``."""
    return anchors.select_anchors(grad, attention_mask, cl, ch)


@select_anchors.register_fake
def _(grad, attention_mask, cl, ch):
    return grad.new_empty(attention_mask.shape, dtype=torch.bool)


@torch.library.custom_op("infobert_fast::anchor_indices", mutates_args=())
def anchor_indices(grad: Tensor, attention_mask: Tensor, cl: float, ch: float, count: int) -> Tensor:
    """``anchors.anchor_indices``."""
    return anchors.anchor_indices(grad, attention_mask, cl, ch, count)


@anchor_indices.register_fake
def _(grad, attention_mask, cl, ch, count):
    return grad.new_empty((count,), dtype=torch.int64)


@torch.library.custom_op("infobert_fast::club", mutates_args=())
def exact_club(y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``club.club_forward``; the bound alone is differentiable, in y."""
    return club.club_forward(y, mask)


@exact_club.register_fake
def _(y, mask):
    dtype = accumulator(y)
    return y.new_empty((), dtype=dtype), y.new_empty((2, y.shape[1]), dtype=dtype), y.new_empty((1,), dtype=dtype)


@torch.library.custom_op("infobert_fast::club_backward", mutates_args=())
def exact_club_backward(grad: Tensor, y: Tensor, mask: Tensor | None, centre: Tensor, total: Tensor) -> Tensor:
    """``club.club_backward``."""
    return club.club_backward(grad, y, mask, centre, total)


@exact_club_backward.register_fake
def _(grad, y, mask, centre, total):
    return y.new_empty(y.shape)


def _setup_exact(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])


def _backward_exact(ctx, grad, *_):
    return exact_club_backward(grad, *ctx.saved_tensors), None


exact_club.register_autograd(_backward_exact, setup_context=_setup_exact)


@torch.library.custom_op("infobert_fast::club_sampled", mutates_args=())
def club_sampled(y: Tensor, partner: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """``sampled_club.sampled_club_forward``; the bound alone is differentiable, in y."""
    return sampled_club.sampled_club_forward(y, partner, mask)


@club_sampled.register_fake
def _(y, partner, mask):
    return y.new_empty((), dtype=accumulator(y)), y.new_empty((1,), dtype=accumulator(y))


@torch.library.custom_op("infobert_fast::club_sampled_backward", mutates_args=())
def club_sampled_backward(grad: Tensor, y: Tensor, partner: Tensor, mask: Tensor | None, total: Tensor) -> Tensor:
    """``sampled_club.sampled_club_backward``."""
    return sampled_club.sampled_club_backward(grad, y, partner, mask, total)


@club_sampled_backward.register_fake
def _(grad, y, partner, mask, total):
    return y.new_empty(y.shape)


def _setup_sampled(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def _backward_sampled(ctx, grad, _):
    return club_sampled_backward(grad, *ctx.saved_tensors), None, None


club_sampled.register_autograd(_backward_sampled, setup_context=_setup_sampled)


@torch.library.custom_op("infobert_fast::take_rows", mutates_args=())
def take_rows(x: Tensor, index: Tensor, distinct: bool) -> Tensor:
    """``x[index]`` with the gradient of ``rows.scatter_rows``."""
    return x.index_select(0, index)


@take_rows.register_fake
def _(x, index, distinct):
    return x.new_empty((index.shape[0], x.shape[1]))


@torch.library.custom_op("infobert_fast::scatter_rows", mutates_args=())
def scatter_rows(grad: Tensor, index: Tensor, like: Tensor, distinct: bool) -> Tensor:
    """``rows.scatter_rows``."""
    return rows.scatter_rows(grad, index, like, distinct)


@scatter_rows.register_fake
def _(grad, index, like, distinct):
    return like.new_empty(like.shape)


def _setup_gather(ctx, inputs, output):
    x, index, ctx.distinct = inputs
    ctx.save_for_backward(x, index)


def _backward_gather(ctx, grad):
    x, index = ctx.saved_tensors
    return scatter_rows(grad, index, x, ctx.distinct), None, None


take_rows.register_autograd(_backward_gather, setup_context=_setup_gather)


@torch.library.custom_op("infobert_fast::freelb_start", mutates_args=())
def freelb_start(
    attention_mask: Tensor, sentence_ids: Tensor | None, units: int, magnitude: float, norm_type: str, seed: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``uniform.freelb_start``."""
    return uniform.freelb_start(attention_mask, sentence_ids, units, magnitude, norm_type, seed, dtype)


@freelb_start.register_fake
def _(attention_mask, sentence_ids, units, magnitude, norm_type, seed, dtype):
    return attention_mask.new_empty((*attention_mask.shape, units), dtype=dtype)


@torch.library.custom_op("infobert_fast::freelb_step", mutates_args=())
def freelb_step(
    delta: Tensor, grad: Tensor, attention_mask: Tensor, adv_lr: float, adv_max_norm: float, norm_type: str
) -> Tensor:
    """``freelb.freelb_step``."""
    return freelb.freelb_step(delta, grad, attention_mask, adv_lr, adv_max_norm, norm_type)


@freelb_step.register_fake
def _(delta, grad, attention_mask, adv_lr, adv_max_norm, norm_type):
    return delta.new_empty(delta.shape)
