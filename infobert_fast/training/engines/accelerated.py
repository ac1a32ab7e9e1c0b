"""A model that accelerate has prepared: alone, or replicated under DistributedDataParallel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

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
