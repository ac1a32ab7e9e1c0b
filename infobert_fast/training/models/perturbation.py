"""A perturbation of the word embeddings, added where the model's own embedding module answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WordEmbeddings", "positions_of", "within_positions"]


class WordEmbeddings:
    """The word-embedding module of a model, to whose output a perturbation can be added.

    The model is called with its own inputs. A forward hook adds delta to what the embedding module returns, before
    positions, LayerNorm and dropout. Without a delta the hook changes nothing. :meth:`remove` takes it away.

    Args:
        model: a model of transformers, or one that `peft` wraps.

    Raises:
        ValueError: for a model without word embeddings, with other embeddings than one vector a token, or with
            embeddings in half precision, in which a perturbation would round away.
    """

    def __init__(self, model: nn.Module) -> None:
        self._name = type(model).__name__
        self.module = _embeddings_of(model)
        self.width: int = self.module.embedding_dim if isinstance(self.module, nn.Embedding) else _width(self.module)
        self._delta: Tensor | None = None
        self._uses = 0
        self._hook = self.module.register_forward_hook(self._add)

    def zeros(self, shape: torch.Size, device: torch.device) -> Tensor:
        """No perturbation: ``[batch, length, width]`` for ids of ``shape``, in the embeddings' dtype."""
        return torch.zeros(*shape, self.width, dtype=next(self.module.parameters()).dtype, device=device)

    @contextlib.contextmanager
    def shifted(self, delta: Tensor | None) -> Iterator[None]:
        """Within this context the embeddings of ids ``[batch, length]`` are shifted by delta ``[batch, length, d]``."""
        self._delta, self._uses = delta, 0
        try:
            yield
        finally:
            self._delta = None
        if delta is not None and self._uses != 1:
            raise ValueError(
                f"`model` ({self._name}) used its word embeddings {self._uses} times in a forward; a perturbation "
                f"needs exactly one use: choose a model that embeds its `input_ids` once"
            )

    def remove(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()

    def _add(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        delta = self._delta
        if delta is None:
            return None
        self._uses += 1
        if not isinstance(output, Tensor) or output.dim() != 3:
            raise ValueError(
                f"`model` ({self._name}) has word embeddings that return no [batch, length, d] tensor, to which a "
                f"perturbation could be added: choose another encoder"
            )
        if output.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"`model` ({self._name}) computes its word embeddings in {output.dtype}, in which most of a "
                f"perturbation would round away: keep them in float32 and use autocast"
            )
        missing = output.shape[1] - delta.shape[1]
        if output.shape[0] != delta.shape[0] or missing < 0 or output.shape[2] != delta.shape[2]:
            raise ValueError(
                f"`model` ({self._name}) embeds a batch of {list(delta.shape[:2])} tokens as {list(output.shape)}; "
                f"the perturbation needs [batch, length, {delta.shape[2]}]: choose another encoder"
            )
        # Some encoders fill their input up to whole blocks, on the right.
        return output + (nn.functional.pad(delta, (0, 0, 0, missing)) if missing else delta)


def positions_of(model: nn.Module) -> int | None:
    """Tokens of the longest input that the model has learned positions for; None where it keeps no table of them."""
    base: Any = getattr(model, "base_model", model)
    table = getattr(getattr(base, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    # RoBERTa and its kin count from behind the padding's place.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def within_positions(model: nn.Module, max_length: int) -> int:
    """``max_length``, or the longest input that the model has positions for: longer texts are cut in either case."""
    return min(max_length, positions_of(model) or max_length)


def _embeddings_of(model: Any) -> nn.Module:
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    if not isinstance(embeddings, nn.Module):
        raise ValueError(
            f"`model` was a {type(model).__name__} without word embeddings, on which the perturbation lives: use an "
            f"encoder whose `get_input_embeddings()` returns them"
        )
    weight = next(embeddings.parameters(), None)
    if weight is None or weight.dim() > 2:
        raise ValueError(
            f"`model` ({type(model).__name__}) has {type(embeddings).__name__} for word embeddings, which holds no "
            f"table of one vector a token: choose another encoder"
        )
    if weight.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"`model` holds its word embeddings in {weight.dtype}, in which most of a perturbation would round away: "
            f"load it with dtype=torch.float32 and train with bf16=True or fp16=True (autocast)"
        )
    return embeddings


def _width(embeddings: nn.Module) -> int:
    """Of a wrapped embedding, or one of another class: the width of its table."""
    for part in embeddings.modules():
        if isinstance(part, nn.Embedding):
            return part.embedding_dim
    return int(next(embeddings.parameters()).shape[-1])
