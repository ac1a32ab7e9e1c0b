"""One forward of the first batch, on the very path that trains: what the head reads, and what the model costs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from infobert_fast.data.packing import Packing, lay_out
from infobert_fast.training.models.feature import (
    Feature,
    declared_feature,
    last_marks,
    place_of,
    read_by_head,
    sentence_feature,
)
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.replay import RandomReplay

__all__ = [
    "check_architecture",
    "check_packing",
    "check_sight",
    "counted_flops",
    "first_look",
    "settle_feature",
    "untouched",
]

logger = logging.getLogger(__name__)


def check_architecture(model: Any) -> None:
    """Refuse a model whose states are not those of the input's tokens.

    Raises:
        ValueError: for an encoder with a decoder, and for tokens that `peft` puts before the text.
    """
    for adapter in (getattr(model, "peft_config", None) or {}).values():
        if adapter.is_prompt_learning:
            raise ValueError(
                f"`model` has a {type(adapter).__name__}, which puts tokens of its own before the text, so "
                f"that states are no longer its tokens': use LoRA or another adapter of weights"
            )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"`model` ({type(model).__name__}) has a decoder, whose states are none of the input's tokens: use an "
            f"encoder alone"
        )


def first_look(model: PerturbedModel, call: Callable[..., Any], batch: Batch, asked: Feature | None) -> float:
    """Settle ``model.feature`` on a run's first batch, and check what must hold for the run; nothing stays changed.

    These forwards are not compiled. They also let torch.compile see one graph: transformers installs its hooks for
    hidden states in a model's first forward, which would break the graph there.

    Args:
        model, call, batch, asked: as for :func:`settle_feature`.

    Returns:
        FLOPs of a forward's linear layers, per token.

    Raises:
        ValueError: as :func:`check_packing`, :func:`settle_feature` and :func:`check_sight`.
    """
    device = batch.attention_mask.device
    with untouched(model.bare, device):
        check_packing(model, call, batch)
    with untouched(model.bare, device):
        with counted_flops(model.bare) as flops:
            model.feature = settle_feature(model, call, batch, asked)
        check_sight(model, call, batch)
    return sum(flops) / batch.input_ids.numel()


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
    Where that tells nothing, the model is asked, and then the first token's state is taken, as published.

    Args:
        model, call, batch: as for :meth:`PerturbedModel.outputs`.
        asked: the feature to take; None for the one that the head reads.

    Raises:
        ValueError: for a model whose loss does not depend on its word embeddings, whose hidden states carry no
            gradient, or whose head reads the state of padding.
    """
    mask = batch.attention_mask
    delta = model.words.zeros(mask.shape, mask.device).requires_grad_()
    with model.words.settled(batch.input_ids):
        loss, outputs = model.outputs(call, batch, delta)
    name, last = type(model.bare).__name__, outputs.hidden_states[-1]
    if not (last.requires_grad and outputs.hidden_states[0].requires_grad):
        raise ValueError(
            f"`model` ({name}) returns hidden states that carry no gradient, so that the regularisers could not train "
            f"it: choose another encoder"
        )
    by_delta, by_state = torch.autograd.grad(loss, (delta, last), allow_unused=True)
    if by_delta is None:
        raise ValueError(
            f"the loss of `model` ({name}) does not depend on what its word embeddings return: the perturbation would "
            f"have no effect; choose an encoder that reads `get_input_embeddings()`"
        )
    read = None
    if by_state is not None:  # a model may return copies of its states, of which the loss does not know
        by_state = by_state[:, : mask.shape[1]]
        read = read_by_head(by_state, mask, last_marks(batch.input_ids, mask, model.bare))
    seen = by_delta if by_state is None else by_state
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    of_sentences = isinstance(logits, Tensor) and logits.dim() == 2  # answers have a logit a token, padding's too
    if read is None and of_sentences and bool((seen.float().norm(dim=-1) * (mask == 0)).any()):
        raise ValueError(
            f"the head of `model` ({name}) reads the state of padding in this batch: set tokenizer.padding_side to the "
            f"side away from the token that it reads, and the model's `pad_token_id` to the tokenizer's"
        )
    feature = asked or read or declared_feature(model.bare) or "first"
    if read is not None and feature != read:
        logger.warning("`global_feature` is %r; the head of %s reads %r, another state", feature, name, read)
    else:
        logger.info("sentence feature: %s%s", feature, ", which the head reads" if read else "")
    return feature


def check_sight(model: PerturbedModel, call: Callable[..., Any], batch: Batch) -> None:
    """Refuse a first token that stands for its sentence and sees none of it.

    In a forward of its own, whatever the feature is: an engine may free a graph behind its first traversal, and take
    each forward for one of all ranks. Reads the host.

    Args:
        model, call, batch: as for :meth:`PerturbedModel.outputs`, with the feature that was settled.

    Raises:
        ValueError: where the feature is the first token's last state, and that depends on no other token.
    """
    mask = batch.attention_mask
    delta = model.words.zeros(mask.shape, mask.device).requires_grad_()
    last = model.outputs(call, batch, delta)[1].hidden_states[-1]
    states = sentence_feature(last[:, : mask.shape[1]], mask, "first")
    # Any direction would do but the one along the state, whose length a normalisation may hold.
    direction = torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype, device=states.device)
    (grad,) = torch.autograd.grad((states * direction).sum(), delta)
    size = grad.float().norm(dim=-1) * mask
    if model.feature != "first" or not bool((mask.sum(1) > 1).any()) or not bool(size.any()):
        return  # another feature, no other token, or states that tell nothing of the input
    if not bool(size.scatter(1, place_of("first", mask)[:, None], 0.0).any()):
        raise ValueError(
            f"the sentence feature of `model` ({type(model.bare).__name__}) would be the first token's state, which "
            f"sees no other token of its sentence, as in a causal model: use a bidirectional encoder, or a classifier "
            f"that reads the last one"
        )


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


@contextlib.contextmanager
def counted_flops(model: nn.Module) -> Iterator[list[int]]:
    """A list to which each call of a linear layer within the context adds its FLOPs."""
    found: list[int] = []

    def count(layer: nn.Module, args: Any, output: Tensor) -> None:
        if isinstance(output, Tensor):  # a router's may be several
            found.append(2 * output.numel() * cast(Tensor, layer.weight).numel() // output.shape[-1])

    linear = (nn.Linear, Conv1D)
    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, linear)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
