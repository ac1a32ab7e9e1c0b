"""A model run on a micro-batch with perturbed word embeddings: what goes in, and the states that come out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infobert_fast.data.packing import Packing
from infobert_fast.training.models.feature import Feature, last_marks, sentence_feature
from infobert_fast.training.models.packing import PackedEncoder, unpack
from infobert_fast.training.models.perturbation import WordEmbeddings

__all__ = ["Batch", "LossFunction", "Pass", "PerturbedModel", "own_loss"]

HEADS = ("logits", "start_logits", "end_logits")  # what models for sentences and for answers call their predictions
# Takes what to call in the model's place and the keyword arguments; returns the loss and the model's outputs.
LossFunction = Callable[[Callable[..., Any], Mapping[str, Any]], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Args:
        inputs: the model's own keyword arguments: ``input_ids`` and ``attention_mask`` ``[batch, length]``, labels, ...
        lengths: tokens of each sentence, known on the host.
        weight: what the micro-batch counts in its optimisation step; it multiplies every term. 1 / accumulation steps
            where all micro-batches are of one size.
        packing: where the encoder stack runs packed.
        left_padded: whether a sentence begins with padding.
    """

    inputs: Mapping[str, Any]
    lengths: Sequence[int]
    weight: float = 1.0
    packing: Packing | None = None
    left_padded: bool = False

    @property
    def input_ids(self) -> Tensor:
        ids: Tensor = self.inputs["input_ids"]
        return ids

    @property
    def attention_mask(self) -> Tensor:
        mask: Tensor = self.inputs["attention_mask"]
        return mask


class Pass:
    """What a forward returns: the task loss, and what is taken from the model's outputs when it is read, in float32 at
    least.
    """

    def __init__(self, task_loss: Tensor, outputs: Any, batch: Batch, feature: Feature, model: nn.Module) -> None:
        self.task_loss = task_loss
        self._outputs, self._batch, self._feature, self._model = outputs, batch, feature, model

    @functools.cached_property
    def embedded(self) -> Tensor:
        """The embedding block's output, ``[batch, length, hidden]``."""
        hidden = self._outputs.hidden_states[0]
        return self._cut(hidden if self._batch.packing is None else unpack(self._batch.packing, hidden))

    @functools.cached_property
    def last_hidden(self) -> Tensor:
        """The last layer's output, ``[batch, length, hidden]``."""
        return self._cut(self._outputs.hidden_states[-1])

    @functools.cached_property
    def sentence(self) -> Tensor:
        """The sentence feature, ``[batch, hidden]``."""
        marks = self._batch.attention_mask
        if self._feature == "last":
            marks = last_marks(self._batch.input_ids, marks, self._model)
        return sentence_feature(self.last_hidden, marks, self._feature)

    @functools.cached_property
    def logits(self) -> tuple[Tensor, ...]:
        """By head."""
        return tuple(_full(self._outputs[name]) for name in HEADS if name in self._outputs)

    def _cut(self, hidden: Tensor) -> Tensor:
        return _full(hidden[:, : self._batch.input_ids.shape[1]])  # some encoders fill their input up to whole blocks


def own_loss(call: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """The loss that the model computes from its labels."""
    outputs = call(**inputs)
    return outputs.loss, outputs


class PerturbedModel:
    """A model with a hook on its word embeddings, called as the model is; :meth:`remove` takes the hooks off again.

    Args:
        model: a model of transformers, bare of what an engine wraps around it, or one that `peft` wraps.
        feature: what stands for a sentence, see :mod:`infobert_fast.training.models.feature`.
        loss: how the task loss is computed.
        packing: prepare the encoder stack for packed rows.
    """

    def __init__(
        self, model: nn.Module, feature: Feature = "first", loss: LossFunction = own_loss, *, packing: bool = False
    ) -> None:
        self.bare, self.feature, self.loss = model, feature, loss
        self.with_states = True  # whether hidden states are asked for: without regularisers nobody reads them
        self.words = WordEmbeddings(model)
        self.packed = PackedEncoder(model) if packing else None

    def remove(self) -> None:
        """Leave the model as it was."""
        self.words.remove()
        if self.packed is not None:
            self.packed.remove()

    def outputs(self, call: Callable[..., Any], batch: Batch, delta: Tensor | None) -> tuple[Tensor, Any]:
        """The task loss and the model's outputs, hidden states among them, as the model gives them.

        Args:
            call: the model, or what wraps it.
            delta: ``[batch, length, d]``, added to the word embeddings; nothing is added where None.

        Raises:
            ValueError: for a model that does not return its hidden states.
        """
        recorded = _Recorded(call, self.with_states)
        rows = contextlib.nullcontext() if self.packed is None else self.packed.rows(batch.packing)
        with self.words.shifted(delta), rows:
            loss, outputs = self.loss(recorded, batch.inputs)
        outputs = recorded.outputs if outputs is None else outputs
        if self.with_states and getattr(outputs, "hidden_states", None) is None:
            raise ValueError(
                f"`model` ({type(self.bare).__name__}) returned {_described(outputs)} and no `hidden_states`, from "
                f"which the regularisers are computed: it must take output_hidden_states=True and return a ModelOutput"
            )
        return loss, outputs

    def __call__(self, call: Callable[..., Any], batch: Batch, delta: Tensor | None = None) -> Pass:
        """As :meth:`outputs`.

        Raises:
            ValueError: for a batch padded on the left where the first token stands for a sentence.
        """
        if batch.left_padded and self.feature == "first":
            raise ValueError(
                f"a sentence of the batch begins with padding, where the head of `model` ({type(self.bare).__name__}) "
                f"reads a state: set tokenizer.padding_side = 'right'"
            )
        return Pass(*self.outputs(call, batch, delta), batch, self.feature, self.bare)


class _Recorded:
    """Stands in the model's place for a loss function, asks for hidden states where told, and keeps the outputs."""

    def __init__(self, call: Callable[..., Any], with_states: bool) -> None:
        self._call, self.outputs = call, None
        self._more = {"output_hidden_states": True} if with_states else {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.outputs = self._call(*args, **{**kwargs, **self._more})
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _described(outputs: Any) -> str:
    return f"a {type(outputs).__name__}" + (f" with {sorted(outputs)}" if isinstance(outputs, Mapping) else "")
