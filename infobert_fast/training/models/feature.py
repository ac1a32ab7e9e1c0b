"""The sentence feature Z: the state that the model's head reads."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["FEATURES", "Feature", "declared_feature", "read_by_head", "sentence_feature"]

Feature = Literal["first", "mean", "last"]
FEATURES: tuple[Feature, ...] = ("first", "mean", "last")


def sentence_feature(last_hidden: Tensor, attention_mask: Tensor, feature: Feature) -> Tensor:
    """``[batch, hidden]`` from ``[batch, length, hidden]``: the first token's state, the last one's, or tokens' mean.

    Padding may lie on either side.
    """
    if feature == "mean":
        weight = attention_mask.to(last_hidden.dtype).unsqueeze(-1)
        return (last_hidden * weight).sum(1) / weight.sum(1)
    if feature == "first":
        place = attention_mask.to(torch.int8).argmax(1)
    else:
        steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        place = (attention_mask.to(steps.dtype) * steps).argmax(1)
    return last_hidden[torch.arange(len(place), device=place.device), place]


def declared_feature(config: Any) -> Feature | None:
    """What a configuration says of its head; None where it says nothing."""
    said = getattr(config, "classifier_pooling", None) or getattr(config, "clf_pooling", None)
    names: dict[Any, Feature] = {"cls": "first", "bos": "first", "mean": "mean", "late": "mean", "last": "last"}
    return names.get(said)


def read_by_head(grad: Tensor, attention_mask: Tensor) -> Feature | None:
    """The feature that a loss depends on, by its gradient ``[batch, length, hidden]`` with respect to the last states.

    The gradient is zero at every state that the head does not read, and the same at all tokens for a mean. None where
    it is neither: the head reads tokens one by one, as for question answering. Reads the host.
    """
    mask = attention_mask.bool()
    long = mask.sum(1) > 1  # of one token, first, last and mean are the same
    grad, mask = grad[long].float(), mask[long]
    if not len(grad):
        return None
    size = grad.norm(dim=-1)
    steps = torch.arange(mask.shape[1], device=mask.device)
    for feature, place in (("first", mask.int().argmax(1)), ("last", (mask * steps).argmax(1))):
        elsewhere = size.scatter(1, place[:, None], 0.0)
        if not bool(elsewhere.any()) and bool(size.any()):
            return feature  # type: ignore[return-value]
    mean = sentence_feature(grad, mask, "mean").unsqueeze(1)
    off = ((grad - mean).norm(dim=-1) * mask).amax(1)
    return "mean" if bool((off <= 1e-3 * mean.norm(dim=-1).squeeze(1)).all()) and bool(size.any()) else None
