"""Running any Hugging Face encoder from perturbed word embeddings, and proof that this is the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = [
    "check_bidirectional",
    "check_embedded_forward",
    "embedded_inputs",
    "inputs_beside",
    "positions_of",
    "within_positions",
    "word_embeddings_of",
]

# Encoders that take a prepared mask as it is: those for which a test compares it with their own.
MASKED_FROM_OUTSIDE = ("albert", "bert", "distilbert", "electra", "modernbert", "roberta", "xlm-roberta")


def word_embeddings_of(model: PreTrainedModel) -> nn.Module:
    """The model's word-embedding module.

    Raises:
        ValueError: if it has none, or holds it in half precision, where a perturbation would round away.
    """
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    if not isinstance(embeddings, nn.Module):
        raise ValueError(
            f"`model` was a {type(model).__name__} without input embeddings, on which the perturbation lives: use an "
            f"encoder whose `get_input_embeddings()` returns them"
        )
    weight = next(embeddings.parameters())
    if torch.finfo(weight.dtype).bits < 32:
        raise ValueError(
            f"`model` holds its word embeddings in {weight.dtype}, in which most of a perturbation would round away: "
            f"load it with dtype=torch.float32 and train with bf16=True or fp16=True (autocast)"
        )
    return embeddings


def positions_of(model: PreTrainedModel) -> int | None:
    """Tokens of the longest input that the model has learned positions for; None where it keeps no table of them."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    # RoBERTa and its kin count from behind the padding's place.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def within_positions(model: PreTrainedModel, max_length: int) -> int:
    """``max_length``, or the longest input that the model has positions for: longer texts are cut in either case."""
    return min(max_length, positions_of(model) or max_length)


def inputs_beside(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The model's keyword arguments without ``input_ids``, for a call with ``inputs_embeds``; the same in every pass.

    RoBERTa and its kin number positions from the ids, skipping padding, and fall back to plain counting without them:
    the positions they would have used are passed explicitly.
    """
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "lengths", "packing")}
    if "position_ids" not in rest:
        for module in model.modules():
            numbering = getattr(module, "create_position_ids_from_input_ids", None)
            if numbering is not None:
                rest["position_ids"] = numbering(inputs["input_ids"], module.padding_idx)
                break
    if "lengths" in inputs and "packing" not in inputs and _takes_masks(model.config):
        rest["attention_mask"] = _sdpa_mask(model.config, inputs["attention_mask"], inputs["lengths"])
    return rest


def _takes_masks(config: Any) -> bool:
    """Whether the attention is SDPA, and the mask goes nowhere else (ModernBERT can average over it)."""
    return (
        config.model_type in MASKED_FROM_OUTSIDE
        and config._attn_implementation == "sdpa"
        and getattr(config, "classifier_pooling", "cls") == "cls"
    )


def _sdpa_mask(config: Any, attention_mask: Tensor, lengths: Sequence[int]) -> Any:
    """The mask that transformers would make for SDPA, with padding told from lengths: transformers waits for the device
    to say whether there is any. Without padding there is no mask, and the kernels that take none.
    """
    width, mask = attention_mask.shape[1], None
    if min(lengths) < width:
        mask = attention_mask.bool()[:, None, None, :].expand(-1, 1, width, -1).contiguous()
    if config.model_type != "modernbert":
        return mask
    window, sliding = config.local_attention // 2, mask
    if width > window + 1:
        place = torch.arange(width, device=attention_mask.device)
        near = ((place[:, None] - place).abs() <= window).expand(len(lengths), 1, -1, -1)
        sliding = near.contiguous() if mask is None else mask & near
    return {"full_attention": mask, "sliding_attention": sliding}


def embedded_inputs(model: PreTrainedModel, inputs: Mapping[str, Any], embeddings: Tensor) -> dict[str, Any]:
    """The model's keyword arguments with ``embeddings`` in the place of ``input_ids``."""
    return {**inputs_beside(model, inputs), "inputs_embeds": embeddings}


@torch.no_grad()
def check_embedded_forward(model: PreTrainedModel, inputs: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Run two sentences from ids and from embeddings, without dropout, and compare the logits.

    Called once, at the first training step. It leaves mode and random state as they were.

    Raises:
        ValueError: where the two differ: such a model would be trained differently from how it is evaluated.
    """
    few = {name: value[:2] for name, value in inputs.items() if isinstance(value, Tensor)}
    training = model.training
    model.eval()
    try:
        by_ids = _logits(model(**few))
        embeddings = word_embeddings_of(model)(few["input_ids"])
        by_embeddings = _logits(model(**embedded_inputs(model, few, embeddings), output_hidden_states=True))
    finally:
        model.train(training)
    difference = float((by_ids - by_embeddings).abs().max())
    if difference > tolerance * max(1.0, float(by_ids.abs().max())):
        raise ValueError(
            f"`model` ({type(model).__name__}) gives other logits from embeddings than from ids (by "
            f"{difference:.1e}): it reads the ids for more than embedding them; pass what it derives from them "
            f"(position_ids, ...) in the batch"
        )


@torch.no_grad()
def check_bidirectional(model: PreTrainedModel) -> None:
    """Refuse a model whose first hidden state does not stand for the sentence; mode and random state stay.

    Raises:
        ValueError: for an encoder with a decoder, and where the first token's state does not depend on the second
            token: a causal model.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"`model` ({type(model).__name__}) has a decoder, whose states are none of the input's tokens: use an "
            f"encoder alone"
        )
    padding = getattr(model.config, "pad_token_id", None)
    ids = torch.tensor([[i for i in range(3) if i != padding][:2]], device=next(model.parameters()).device)
    few = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    embeddings = word_embeddings_of(model)(ids)
    other = embeddings.clone()
    # No constant: LayerNorm would take it off again.
    other[:, 1] += torch.linspace(-1, 1, other.shape[2], device=other.device)
    training = model.training
    model.eval()
    try:
        first, changed = (
            model(**embedded_inputs(model, few, rows), output_hidden_states=True).hidden_states[-1][:, 0]
            for rows in (embeddings, other)
        )
    finally:
        model.train(training)
    if torch.equal(first, changed):
        raise ValueError(
            f"`model` ({type(model).__name__}) is causal: its first token sees nothing of the sentence it stands for; "
            f"use a bidirectional encoder"
        )


def _logits(outputs: Any) -> Tensor:
    """A classifier's logits, or a question answerer's of start and end."""
    return outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits])
