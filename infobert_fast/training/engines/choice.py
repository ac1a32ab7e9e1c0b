"""Which runner serves what the launcher and the arguments ask for."""

from __future__ import annotations

from typing import cast

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from infobert_fast.training.engines.accelerated import AcceleratedRunner
from infobert_fast.training.engines.deepspeed import DeepSpeedRunner
from infobert_fast.training.engines.fsdp2 import Fsdp2Runner, reduces_each_pass
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import PerturbedModel

__all__ = ["runner_for", "runner_type"]


def runner_type(accelerator: Accelerator) -> type[Runner]:
    """The engine that ``accelerator`` was set up for."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return DeepSpeedRunner
    if accelerator.distributed_type == DistributedType.FSDP:
        return Fsdp2Runner
    return AcceleratedRunner


def runner_for(accelerator: Accelerator, model: PerturbedModel, wrapped: nn.Module) -> Runner:
    """The runner of a model that ``accelerator`` has prepared."""
    kind = runner_type(accelerator)
    if kind is DeepSpeedRunner:
        return DeepSpeedRunner(model, wrapped, lambda: accelerator.sync_gradients)
    if kind is Fsdp2Runner:
        return Fsdp2Runner(
            model,
            cast(FSDPModule, wrapped),
            lambda: accelerator.sync_gradients,
            accelerator.autocast,
            reduces_each_pass(accelerator),
        )
    return AcceleratedRunner(model, wrapped, accelerator)
