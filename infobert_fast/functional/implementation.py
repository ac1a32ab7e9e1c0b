"""Which implementation answers a call."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from infobert_fast import checks

__all__ = ["IMPLEMENTATIONS", "Implementation", "choose"]

Implementation = Literal["auto", "triton", "torch", "compiled", "reference"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("auto", "triton", "torch", "compiled", "reference")


def choose(implementation: Implementation, tensor: Tensor, *, kernel: bool, compiled: bool = False) -> Implementation:
    """Resolve ``"auto"`` for ``tensor``; ``kernel`` and ``compiled`` say whether this function has a Triton kernel, and
    loops for ``torch.compile``.
    """
    checks.choice("implementation", implementation, IMPLEMENTATIONS)
    if implementation == "compiled" and not compiled:
        raise ValueError("`implementation` was 'compiled', but this function has nothing to compile; use 'torch'")
    if implementation not in ("auto", "triton"):
        return implementation
    reason = None
    if not kernel:
        reason = "this function has no Triton kernel"
    elif not _triton_installed():
        reason = "Triton is not installed"
    elif tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = f"the tensors are on {tensor.device}"
    elif implementation == "auto" and (tensor.device.type != "cuda" or tensor.dtype == torch.float64):
        reason = "the interpreter, and float64 on a GPU, are for those who ask"
    if implementation == "triton" and reason is not None:
        raise ValueError(f"`implementation` was 'triton', but {reason}; use 'torch' (any device), or 'auto' to choose")
    return "torch" if reason is not None else "triton"


@functools.cache
def _triton_installed() -> bool:
    """Looked up once: it reads every folder of ``sys.path``."""
    return importlib.util.find_spec("triton") is not None
