"""A perturbation of the word embeddings, added where the model's own embedding module answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from infobert_fast.training.models.stock import stock_of, text_config

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
        self._ids: Tensor | None = None  # while `settled` looks
        self._transposed = False
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

    @contextlib.contextmanager
    def settled(self, ids: Tensor) -> Iterator[None]:
        """Within this context a forward tells whether the model embeds ``[batch, length]`` ids as they are, or as
        ``[length, batch]``; it reads the host.

        Raises:
            ValueError: in that forward, where the model embeds other ids.
        """
        self._ids = ids
        try:
            yield
        finally:
            self._ids = None

    def remove(self) -> None:
        """Take the hook off the model."""
        self._hook.remove()

    def _settle(self, ids: Tensor, embedded: Any) -> None:
        embedded = embedded[:, : ids.shape[1]] if embedded.dim() == 2 and len(embedded) == len(ids) else embedded
        self._transposed = not torch.equal(embedded, ids)
        if self._transposed and not torch.equal(embedded, ids.t()):
            raise ValueError(
                f"`model` ({self._name}) embeds other ids than its `input_ids`, so that it is unknown which token a "
                f"perturbation would move: choose another encoder"
            )

    def _add(self, module: nn.Module, args: Any, output: Any) -> Any:
        delta = self._delta
        if delta is None:
            return None
        self._uses += 1
        if self._ids is not None and args:
            self._settle(self._ids, args[0])
        if isinstance(output, tuple) and output[1:] == (None,):  # with the scale of a quantised table, here of none
            return self._shift(output[0], delta), None
        return self._shift(output, delta)

    def _shift(self, output: Any, delta: Tensor) -> Tensor:
        delta = delta.transpose(0, 1) if self._transposed else delta
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
                f"`model` ({self._name}) embeds tokens as {list(output.shape)}; the perturbation is "
                f"{list(delta.shape)}: choose another encoder"
            )
        # Some encoders fill their input up to whole blocks, on the right.
        return output + (nn.functional.pad(delta, (0, 0, 0, missing)) if missing else delta)


# What models call their table of learned or computed positions.
TABLES = (
    "position_embeddings",
    "embed_positions",
    "wpe",
    "positions_embed",
    "char_position_embeddings",
    "pos_encoding",
)


def positions_of(model: nn.Module) -> int | None:
    """Tokens of the longest input that the model has positions for; None where it keeps no table of them."""
    most = getattr(text_config(model), "max_position_embeddings", None)
    for module in stock_of(model).modules():
        for name in TABLES:
            table: Any = getattr(module, name, None)
            rows = getattr(table, "weight", table)
            if isinstance(rows, Tensor) and rows.dim() == 2:
                # RoBERTa and its kin count from behind the padding's place. Others leave rows unused.
                count = getattr(table, "num_embeddings", len(rows))
                padding = getattr(table, "padding_idx", None)
                count -= 0 if padding is None else padding + 1
                return count if most is None else min(count, most)
    return getattr(text_config(model), "max_seq_len", None)  # of MPT, whose biases are made for so many


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
