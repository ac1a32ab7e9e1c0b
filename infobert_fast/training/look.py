"""One forward of the first batch, on the very path that trains: what the head reads, and what the model costs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from infobert_fast.data.packing import Packing, lay_out
from infobert_fast.training.models.feature import Feature, declared_feature, read_by_head
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.replay import RandomReplay

__all__ = ["check_architecture", "check_packing", "counted_flops", "settle_feature", "untouched"]

logger = logging.getLogger(__name__)


def check_architecture(model: Any) -> None:
    """Refuse a model whose states are not those of the input's tokens.

    Raises:
        ValueError: for an encoder with a decoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"`model` ({type(model).__name__}) has a decoder, whose states are none of the input's tokens: use an "
            f"encoder alone"
        )


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards the model's buffers, its mode and the random state are as before, bit for bit."""
    replay, buffers = RandomReplay(device), [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        replay.rewind()
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                if buffer.shape == before.shape:
                    buffer.copy_(before)


def settle_feature(model: PerturbedModel, call: Callable[..., Any], batch: Batch, asked: Feature | None) -> Feature:
    """The sentence feature: what was asked for, or what the head reads, which the gradient of the task loss tells.

    The loss is differentiated with respect to the last hidden states: only those that the head reads have a gradient.
    Where that tells nothing, the configuration is asked, and then the first token's state is taken, as published.

    Args:
        model, call, batch: as for :meth:`PerturbedModel.outputs`.
        asked: the feature to take; None for the one that the head reads.

    Raises:
        ValueError: for a model whose loss does not depend on its word embeddings, and for a causal one whose first
            token would stand for the sentence it does not see.
    """
    mask = batch.attention_mask
    delta = model.words.zeros(mask.shape, mask.device).requires_grad_()
    loss, outputs = model.outputs(call, batch, delta)
    last = outputs.hidden_states[-1]
    by_delta, by_state = torch.autograd.grad(loss, (delta, last), allow_unused=True)
    name = type(model.bare).__name__
    if by_delta is None:
        raise ValueError(
            f"the loss of `model` ({name}) does not depend on what its word embeddings return: the perturbation would "
            f"have no effect; choose an encoder that reads `get_input_embeddings()`"
        )
    read = None if by_state is None else read_by_head(by_state[:, : mask.shape[1]], mask)
    feature = asked or read or declared_feature(cast(Any, model.bare).config) or "first"
    if feature == "first" and read == "first" and _sees_one_token(by_delta, mask):
        raise ValueError(
            f"`model` ({name}) is causal: its first token sees nothing of the sentence it stands for; use a "
            f"bidirectional encoder, or a classifier that reads the last token"
        )
    if read is not None and feature != read:
        logger.warning("`global_feature` is %r; the head of %s reads %r, another state", feature, name, read)
    else:
        logger.info("sentence feature: %s%s", feature, ", which the head reads" if read else "")
    return feature


def check_packing(model: PerturbedModel, call: Callable[..., Any], batch: Batch) -> None:
    """Compare packed and padded logits of up to four sentences of a batch, in one row and without dropout.

    In the precision that trains, packed logits may differ from padded ones by four times what the padded ones differ
    from those of a sentence alone, and by a few units in the last place. A leak is told exactly: where the other
    sentences of the row are perturbed, a sentence's logits must stay the same, bit for bit.

    Args:
        model, call, batch: as for :meth:`PerturbedModel.outputs`; without packing nothing is done.

    Raises:
        ValueError: where either does not hold, or the head predicts for tokens instead of the sentence.
    """
    if model.packed is None:
        return
    few = {name: value[:4] for name, value in batch.inputs.items() if isinstance(value, Tensor) and name != "labels"}
    mask, lengths = few["attention_mask"], list(batch.lengths[:4])
    packing = lay_out(lengths, mask.shape[1], [range(len(lengths))])
    packing = Packing(*(index.to(mask.device) for index in packing))

    def logits(packing: Packing | None, delta: Tensor | None = None, **inputs: Tensor) -> Any:
        assert model.packed is not None
        with model.packed.rows(packing), model.words.shifted(delta):
            return call(**inputs).get("logits")

    def alone(i: int) -> dict[str, Tensor]:
        lines = {name: value[i : i + 1] for name, value in few.items()}
        return {n: line[:, : lengths[i]] if line.shape[1:] == mask.shape[1:] else line for n, line in lines.items()}

    first = torch.zeros_like(mask, dtype=torch.bool).unsqueeze(-1)
    first[0] = True
    model.bare.eval()
    with torch.no_grad():
        # As many forwards on each rank, whatever it finds: under some engines every forward is a collective one.
        padded, packed = logits(None, **few), logits(packing, **few)
        if same := padded is not None and padded.dim() == 2 and padded.shape == packed.shape:
            off = [(logits(None, **alone(i))[0] - padded[i]).abs().max() for i in (0, len(lengths) - 1)]
            rounding = max(1e-4, 4 * torch.finfo(model.packed.precision).eps)
            allowed = 4 * torch.stack(off).max() + rounding * padded.abs().max().clamp(min=1)
            delta = model.words.zeros(mask.shape, mask.device)
            delta += torch.linspace(-1, 1, delta.shape[-1], device=mask.device)  # a constant would end in a LayerNorm
            others_moved = logits(packing, delta.masked_fill(first, 0), **few)
            first_moved = logits(packing, delta.masked_fill(~first, 0), **few)
            same = bool((packed - padded).abs().max() <= allowed)
            same = same and torch.equal(others_moved[0], packed[0]) and torch.equal(first_moved[1:], packed[1:])
    if not same:
        raise ValueError(
            f"`packing` was True; a {type(model.bare).__name__} does not give the same logits packed as padded, or "
            f"none for a sentence: leave it False, and use `batch_tokens` against padding"
        )


def _sees_one_token(grad: Tensor, attention_mask: Tensor) -> bool:
    """Whether a loss read off the first token depends on no other: reads the host."""
    mask = attention_mask.bool()
    if not bool((mask.sum(1) > 1).any()):
        return False
    size = grad.float().norm(dim=-1) * mask
    if not bool(size.any()):
        return False  # features that tell nothing of the input
    return not bool(size.scatter(1, mask.int().argmax(1)[:, None], 0.0).any())


@contextlib.contextmanager
def counted_flops(model: nn.Module) -> Iterator[list[int]]:
    """A list to which each call of a linear layer within the context adds its FLOPs."""
    found: list[int] = []

    def count(layer: nn.Module, args: Any, output: Tensor) -> None:
        found.append(2 * output.numel() * cast(nn.Linear, layer).in_features)

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Linear)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
