"""The sentence feature Z: the state that the model's head reads."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor

from infobert_fast.training.models.stock import stock_of, text_config

__all__ = ["FEATURES", "Feature", "declared_feature", "last_marks", "place_of", "read_by_head", "sentence_feature"]

Feature = Literal["first", "mean", "last"]
FEATURES: tuple[Feature, ...] = ("first", "mean", "last")
# What configurations call their heads' pooling, and what they say there.
DECLARATIONS = ("classifier_pooling", "clf_pooling", "summary_type")
DECLARED: dict[Any, Feature] = {
    **dict.fromkeys(("cls", "bos", "first"), "first"),
    **dict.fromkeys(("mean", "late"), "mean"),
    "last": "last",
}


def sentence_feature(last_hidden: Tensor, marks: Tensor, feature: Feature) -> Tensor:
    """``[batch, hidden]`` from ``[batch, length, hidden]``: the first token's state, the last one's, or tokens' mean.

    Args:
        last_hidden: the last layer's states.
        marks: ``[batch, length]``, 1 for tokens; padding may lie on either side. For ``"last"``, see
            :func:`last_marks`.
        feature: which states stand for a sentence.
    """
    if feature == "mean":
        weight = marks.to(last_hidden.dtype).unsqueeze(-1)
        return (last_hidden * weight).sum(1) / weight.sum(1)
    place = place_of(feature, marks)
    return last_hidden[torch.arange(len(place), device=place.device), place]


def place_of(feature: Feature, marks: Tensor) -> Tensor:
    """``[batch]``: where in its row the first or the last token lies."""
    if feature == "first":
        return marks.to(torch.int8).argmax(1)
    steps = torch.arange(marks.shape[1], device=marks.device)
    return (marks.to(steps.dtype) * steps).argmax(1)


def last_marks(input_ids: Tensor, attention_mask: Tensor, model: Any) -> Tensor:
    """The tokens among which a head that reads the last one looks for it: those whose id is not the padding's.

    Stock decoders look at ids and not at the mask. So a text that ends with the padding's id, as where that is the
    end-of-text token, is read at the token before.
    """
    pad = getattr(text_config(model), "pad_token_id", None)
    return attention_mask if pad is None else attention_mask * (input_ids != pad)


def declared_feature(model: Any) -> Feature | None:
    """What a model says of its head without being run; None where it says nothing.

    A configuration may name its pooling. A classifier that takes a cache of past tokens decodes, and stock ones read
    the last token.
    """
    for config in (model.config, text_config(model)):
        for name in DECLARATIONS:
            if (feature := DECLARED.get(getattr(config, name, None))) is not None:
                return feature
    return "last" if "past_key_values" in inspect.signature(stock_of(model).forward).parameters else None


def read_by_head(grad: Tensor, attention_mask: Tensor, last: Tensor | None = None) -> Feature | None:
    """The feature that a loss depends on, by its gradient ``[batch, length, hidden]`` with respect to the last states.

    The gradient is zero at every state that the head does not read, and the same at all tokens for a mean. None where
    it is neither: the head reads tokens one by one, as for question answering. Reads the host.

    Args:
        grad: as said.
        attention_mask: ``[batch, length]``.
        last: :func:`last_marks`; the attention mask where None.
    """
    mask, last = attention_mask.bool(), (attention_mask if last is None else last).bool()
    long = mask.sum(1) > 1  # of one token, first, last and mean are the same
    grad, mask, last = grad[long].float(), mask[long], last[long]
    size = grad.norm(dim=-1)
    if not bool(size.any()):
        return None
    ends: tuple[tuple[Feature, Tensor], ...] = (("first", mask), ("last", last))
    for feature, marks in ends:
        if not bool(size.scatter(1, place_of(feature, marks)[:, None], 0.0).any()):
            return feature
    mean = sentence_feature(grad, mask, "mean").unsqueeze(1)
    off = (grad - mean * mask.unsqueeze(-1)).norm(dim=-1).amax(1)  # at padding there is none
    return "mean" if bool((off <= 1e-3 * mean.norm(dim=-1).squeeze(1)).all()) else None
