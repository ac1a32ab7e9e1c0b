"""Which runner serves what the launcher and the arguments ask for."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from infobert_fast.training.engines.accelerated import AcceleratedRunner
from infobert_fast.training.engines.deepspeed import DeepSpeedRunner
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import PerturbedModel

__all__ = ["runner_for", "runner_type"]


def runner_type(accelerator: Accelerator) -> type[Runner]:
    """The engine that ``accelerator`` was set up for.

    Raises:
        ValueError: for an engine without a runner.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return DeepSpeedRunner
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            "`fsdp` is set; the input gradient does not pass through FSDP's hooks: use DDP or DeepSpeed ZeRO-2 or 3"
        )
    return AcceleratedRunner


def runner_for(accelerator: Accelerator, model: PerturbedModel, wrapped: nn.Module) -> Runner:
    """The runner of a model that ``accelerator`` has prepared."""
    kind = runner_type(accelerator)
    if kind is DeepSpeedRunner:
        return DeepSpeedRunner(model, wrapped, lambda: accelerator.sync_gradients)
    return kind(model, wrapped, accelerator)  # type: ignore[call-arg]
