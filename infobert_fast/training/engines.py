"""What differs between engines: which forward makes the graph, and what a backward through it has to be told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from infobert_fast.training.critic import CRITIC

__all__ = [
    "Engine",
    "accelerated",
    "check_deepspeed_config",
    "keep_critic_whole",
    "of_deepspeed",
    "scaler_of_deepspeed",
]

Model = Callable[..., Any]  # called as the model is


@dataclass(frozen=True)
class Engine:
    """How :func:`~infobert_fast.training.step.infobert_step` works through whatever wraps the model.

    Attributes:
        model: is called with the model's arguments; a backward through its result is reduced over ranks.
        backward: takes a loss and whether it is the micro-batch's last.
        probe: is called in the same way for the perturbation's gradient alone, where a graph of ``model`` can be
            traversed only once.
        scale_gradient: the float16 loss scaler.
        defer_reduction: a context in which gradients stay on their rank.
    """

    model: Model
    backward: Callable[[Tensor, bool], None]
    probe: Model | None = None
    scale_gradient: Callable[[Tensor], Tensor] = lambda loss: loss
    defer_reduction: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def accelerated(accelerator: Accelerator, model: nn.Module) -> Engine:
    """For a model that ``accelerator`` has prepared: alone, under DistributedDataParallel, or under DeepSpeed."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return of_deepspeed(model, boundary=accelerator.sync_gradients)
    scaler = accelerator.scaler
    return Engine(
        model,
        lambda loss, last: accelerator.backward(loss),
        scale_gradient=(lambda loss: loss) if scaler is None else scaler.scale,
        defer_reduction=lambda: accelerator.no_sync(model),
    )


def of_deepspeed(engine: Any, *, boundary: bool = True) -> Engine:
    """For a ``DeepSpeedEngine`` of any ZeRO stage; ``boundary``: this micro-batch is the last of its optimisation step.

    The caller calls ``engine.step()`` after the last micro-batch.
    """

    def backward(loss: Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(boundary and last)
        engine.backward(loss, scale_wrt_gas=False)

    def scale(loss: Tensor) -> Tensor:  # engine.scale() would also announce a backward outside the engine
        scaler = scaler_of_deepspeed(engine)
        return loss if scaler is None else scaler.scale(loss)

    def bare(**inputs: Any) -> Any:
        # Any gradient through the engine's own forward counts as the engine's backward, autograd.grad too. The module
        # itself has no such hooks, and not the engine's autocast either.
        if not engine.torch_autocast_enabled():
            return engine.module(**inputs)
        with torch.autocast(engine.device.type, engine.torch_autocast_dtype()):
            return engine.module(**inputs)

    if engine.zero_optimization_stage() == 3:
        # Stage 3 frees weights behind the first traversal of a graph. Its gradients add up only behind the engine's own
        # forward, which counts the backwards; through the bare module each would overwrite the one before.
        return Engine(engine, backward, probe=bare, scale_gradient=scale)
    return Engine(bare, backward, scale_gradient=scale)


def scaler_of_deepspeed(engine: Any) -> torch.amp.GradScaler | None:
    """A ``DeepSpeedEngine``'s float16 loss scaler, where it has one."""
    return engine.torch_autocast_z0_gradscaler or getattr(engine.optimizer, "torch_autocast_gradscaler", None)


def keep_critic_whole(model: nn.Module) -> None:
    """Let ZeRO-3 gather the critic's weights before the critic's own forward, which reads those of its layers.

    To be called before the engine is made. ZeRO-3 otherwise gathers a layer's weights when that layer is called, and
    hands out empty tensors to others.
    """
    from deepspeed.utils import set_z3_leaf_module

    critic = getattr(model, CRITIC, None)
    if critic is not None:
        set_z3_leaf_module(critic, True)


def check_deepspeed_config(config: Any) -> None:
    """Refuse what would train something else in silence; ``config`` is transformers' or accelerate's HfDeepSpeedConfig.

    Raises:
        ValueError: naming the setting to change.
    """
    for half in ("bf16", "fp16"):
        if config.is_true(f"{half}.enabled"):
            raise ValueError(
                f"`{half}` is enabled, in the arguments or the DeepSpeed configuration; its half-precision weights "
                f'round a perturbation away: set {{"torch_autocast": {{"enabled": true, "dtype": "bfloat16"}}}} in '
                f"the configuration and leave `{half}` unset in both"
            )
    dtype = str(config.get_value("torch_autocast.dtype")).removeprefix("torch.")
    clipping = config.get_value("gradient_clipping", 0)
    if (
        config.is_true("torch_autocast.enabled")
        and dtype in ("float16", "fp16", "half")
        and config.get_value("zero_optimization.stage", 0) > 0
        and clipping not in (0, "auto")
    ):
        # Seen in DeepSpeed 0.19.8: the norm is taken before the loss scaler's factor, 65,536 at first, is divided out.
        raise ValueError(
            f"`gradient_clipping` (max_grad_norm) was {clipping} with float16 `torch_autocast` under ZeRO, which clips "
            f"the gradients as the loss scaler has multiplied them, to almost nothing: use bfloat16, or set "
            f"max_grad_norm to 0"
        )
