"""DeepSpeed ZeRO, stages 0 to 3: which forward makes the graph, and what the engine must be told of a backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.critic import critic_of
from infobert_fast.training.models.forward import PerturbedModel

__all__ = ["DeepSpeedRunner", "check_configuration", "keep_critic_whole"]


class DeepSpeedRunner(Runner):
    """Runs a step through a ``DeepSpeedEngine``.

    A gradient through the engine's own forward counts as the engine's backward, ``torch.autograd.grad`` too. So stages
    0 to 2 run the bare module, and the engine sees the one backward. Stage 3 frees weights behind the first traversal
    of a graph. There an input gradient takes a forward of its own, and the backward's forward goes through the engine,
    which counts it: through the bare module, each backward would overwrite the one before.

    Args:
        model: the perturbed model.
        engine: what ``deepspeed.initialize`` returned.
        boundary: tells whether the present micro-batch is the last of its optimisation step; always where None.
    """

    pickled = True

    def __init__(self, model: PerturbedModel, engine: Any, boundary: Callable[[], bool] | None = None) -> None:
        self.engine = engine
        self._stage: int = engine.zero_optimization_stage()
        self.second_forward = self._stage == 3
        self._boundary = (lambda: True) if boundary is None else boundary
        self._norm: float | None = None
        self._bare_model = model.bare
        super().__init__(model, engine if self.second_forward else self.bare)

    @classmethod
    def check(cls, accelerator: Any, args: Any) -> None:
        check_configuration(accelerator.state.deepspeed_plugin.hf_ds_config)

    @classmethod
    def prepare(cls, model: nn.Module, accelerator: Any) -> None:
        keep_critic_whole(model)

    @classmethod
    def describe(cls, accelerator: Any) -> str:
        return f"deepspeed, ZeRO stage {_stage_of(accelerator)}"

    @classmethod
    def shares(cls, accelerator: Any) -> tuple[int, int, int]:
        ranks, stage = accelerator.num_processes, _stage_of(accelerator)
        weights, gradients, optimiser = (ranks if stage >= level else 1 for level in (3, 2, 1))
        return weights, gradients, optimiser

    @property
    def bare(self) -> Callable[..., Any]:
        def call(**inputs: Any) -> Any:
            if not self.engine.torch_autocast_enabled():
                return self._bare_model(**inputs)
            with torch.autocast(self.engine.device.type, self.engine.torch_autocast_dtype()):
                return self._bare_model(**inputs)

        return call

    def scale(self, loss: Tensor) -> Tensor:  # engine.scale() would also announce a backward outside the engine
        scaler = self._scaler
        return loss if scaler is None else scaler.scale(loss)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        self.engine.set_gradient_accumulation_boundary(self._boundary() and last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """DeepSpeed's step, which clips too. Stages 1 to 3 skip it where the gradient is not finite; stage 0 is helped.

        To be called after the last micro-batch of an optimisation step.
        """
        if self._stage == 0 and self._scaler is None:
            gradients = [value.grad for value in self.engine.module.parameters() if value.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(self._norm):  # not before: its clipping wants gradients
                hook = self.engine.optimizer.register_step_pre_hook(lambda *_: self.engine.zero_grad())
                self.engine.step()
                hook.remove()
                return
        self.engine.step()

    def gradient_norm(self, reported: Any) -> Any:
        return self._norm if reported is None else reported

    def leaves_overflow_to_scaler(self) -> bool:
        return self._scaler_handles(self._scaler)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return self.engine.torch_autocast_z0_gradscaler or getattr(
            self.engine.optimizer, "torch_autocast_gradscaler", None
        )


def keep_critic_whole(model: nn.Module) -> None:
    """Let ZeRO-3 gather the critic's weights before the critic's own forward, which reads those of its layers.

    To be called before the engine is made. ZeRO-3 otherwise gathers a layer's weights when that layer is called, and
    hands out empty tensors to others.
    """
    from deepspeed.utils import set_z3_leaf_module

    critic = critic_of(model)
    if critic is not None:
        set_z3_leaf_module(critic, True)


def check_configuration(config: Any) -> None:
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


def _stage_of(accelerator: Any) -> int:
    return int(accelerator.state.deepspeed_plugin.hf_ds_config.get_value("zero_optimization.stage", 0))
