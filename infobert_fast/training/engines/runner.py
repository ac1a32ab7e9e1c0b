"""What a step asks of whatever wraps the model. This runner asks nothing of it: one process, no engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from infobert_fast.training.models.forward import Batch, Pass, PerturbedModel

__all__ = ["Runner"]


class Runner:
    """Runs forwards and backwards of a step on a model in one process; an engine's runner overrides what differs.

    Args:
        model: the perturbed model.
        wrapped: what to call in the model's place for a forward whose backward accumulates weight gradients; the model
            itself where None.
    """

    pickled = False  # whether the engine's own state in a checkpoint is unpickled
    second_forward = False  # whether a graph can be traversed only once, so that an input gradient needs its own

    def __init__(self, model: PerturbedModel, wrapped: Callable[..., Any] | None = None) -> None:
        self.model = model
        self.wrapped = model.bare if wrapped is None else wrapped

    # Before the model is wrapped.

    @classmethod
    def check(cls, accelerator: Any, args: Any) -> None:
        """Refuse settings of the engine under which something else would be trained.

        Raises:
            ValueError: naming the setting to change.
        """

    @classmethod
    def prepare(cls, model: nn.Module, accelerator: Any) -> None:
        """Tell the engine what it must know of the critic, before the engine wraps the model."""

    @classmethod
    def describe(cls, accelerator: Any) -> str:
        """The engine's name in a checkpoint's record."""
        return "none"

    @classmethod
    def shares(cls, accelerator: Any) -> tuple[int, int, int]:
        """Over how many ranks weights, gradients and the optimiser's state are each cut up."""
        return (1, 1, 1)

    @classmethod
    def autocast(cls, accelerator: Any) -> contextlib.AbstractContextManager[Any]:
        """A context to evaluate the wrapped model in, where the engine does not see to the precision itself."""
        return contextlib.nullcontext()

    @classmethod
    def class_of(cls, model: nn.Module) -> type[nn.Module]:
        """The model's own class, which an engine may have replaced by one of its making."""
        return type(model)

    # Within a pass.

    def forward(self, batch: Batch, delta: Tensor | None = None) -> Pass:
        """A forward for :meth:`backward`."""
        return self.model(self.wrapped, batch, delta)

    def probe(self, batch: Batch, delta: Tensor | None = None) -> Pass:
        """A forward for a gradient with respect to delta alone, past the engine's own bookkeeping."""
        return self.model(self.bare, batch, delta)

    @property
    def bare(self) -> Callable[..., Any]:
        """The model past the engine's bookkeeping, in the engine's precision."""
        return self.model.bare

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times a float16 loss scaler's factor, so that an input gradient does not underflow."""
        return loss

    def input_gradient(self, loss: Tensor, delta: Tensor, *, keep_graph: bool = False) -> Tensor:
        """The scaled loss's gradient with respect to delta, and no weight's."""
        return torch.autograd.grad(self.scale(loss), delta, retain_graph=keep_graph)[0]

    def deferred(self) -> contextlib.AbstractContextManager[Any]:
        """A context for every pass but the last of a step: gradients are not reduced over ranks in it."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate the gradient of a loss; ``last``: it is the micro-batch's last."""
        loss.backward()

    # Once an optimisation step.

    def step(self) -> None:
        """The engine's own step, where it has one; the caller steps the optimiser otherwise."""

    def gradient_norm(self, reported: Any) -> Any:
        """The norm of the whole gradient, where the engine did not report it."""
        return reported

    def leaves_overflow_to_scaler(self) -> bool:
        """Whether a float16 loss scaler will skip a step whose gradient is not finite."""
        return False

    def _scaler_handles(self, scaler: torch.amp.GradScaler | None) -> bool:
        return scaler is not None and scaler.get_scale() >= 1
