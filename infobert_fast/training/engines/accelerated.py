"""A model that accelerate has prepared: alone, or replicated under DistributedDataParallel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import PerturbedModel

__all__ = ["AcceleratedRunner"]


class AcceleratedRunner(Runner):
    """One gradient reduction an optimisation step: ``no_sync`` in all passes but the last."""

    def __init__(self, model: PerturbedModel, wrapped: nn.Module, accelerator: Accelerator) -> None:
        super().__init__(model, wrapped)
        self.accelerator = accelerator

    @classmethod
    def check(cls, accelerator: Any, args: Any) -> None:
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process, which would mean nn.DataParallel; launch one process "
                f"per GPU (torchrun --nproc_per_node {args.n_gpu} ...), or set CUDA_VISIBLE_DEVICES to one of them"
            )

        if args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
            raise ValueError(
                "`fsdp` was set, and accelerate shards no model here: it needs devices and a process for each; launch "
                "with torchrun --nproc_per_node N, or leave `fsdp` unset"
            )

    @classmethod
    def prepare(cls, model: nn.Module, accelerator: Any) -> None:
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError(
                "`model` was cut up over ranks as it was loaded (`distributed_config`), and the critic was not: load "
                "it whole, and set `fsdp`, which cuts up both"
            )

    @property
    def bare(self) -> Callable[..., Any]:
        call: Callable[..., Any] = self.accelerator.unwrap_model(
            self.wrapped, keep_fp32_wrapper=True, keep_torch_compile=False
        )
        return call

    def scale(self, loss: Tensor) -> Tensor:
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def deferred(self) -> contextlib.AbstractContextManager[Any]:
        return self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        self.accelerator.backward(loss)

    def leaves_overflow_to_scaler(self) -> bool:
        return self._scaler_handles(self.accelerator.scaler)
