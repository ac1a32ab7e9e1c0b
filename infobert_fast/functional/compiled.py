"""The arithmetic of one block of pairs through ``torch.compile``: hidden activations stay in registers.

On a CPU a score then costs two loads, an addition, a maximum and a multiplication a vector of hidden units, where
PyTorch's operators write and read every activation several times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["VECTOR", "Compiled"]

VECTOR = 16  # float32 of the widest vector of a CPU


def _scores(a: Tensor, minus_b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return (torch.relu(a.unsqueeze(-3) - minus_b.unsqueeze(-2)) * w2).sum(-1) + b2


def _active_sums(a: Tensor, minus_b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    active = torch.where(a.unsqueeze(-3) > minus_b.unsqueeze(-2), weight.unsqueeze(-1), 0)
    return active.sum(-3), active.sum(-2)


class Compiled:
    """One block's arithmetic, see :class:`infobert_fast.functional.streaming.Eager`."""

    # 256 x 256: the sums walk down a block's columns a vector at a time, and 512 rows leave the first-level cache
    # (1.7 times slower); with fewer pairs the calls weigh more.
    PAIRS = 1 << 16

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.dtype, self.device = a.dtype, a.device
        # Blocks of a single row go uncompiled, with every hidden unit of theirs in memory.
        self.pairs = self.PAIRS if min(a.shape[1], b.shape[1]) > 1 else max(1, self.PAIRS // 16)

    def _run(self, function: Callable[..., Any], a: Tensor, b: Tensor, *rest: Tensor) -> Any:
        if a.shape[0] == 1:
            outputs = self._run_rank(function, a[0], -b[0], *(t[0] if t.dim() == 3 else t for t in rest))
            return tuple(t.unsqueeze(0) for t in outputs) if isinstance(outputs, tuple) else outputs.unsqueeze(0)
        return self._run_rank(function, a, -b, *rest)

    def _run_rank(self, function: Callable[..., Any], a: Tensor, minus_b: Tensor, *rest: Tensor) -> Any:
        # A size of 1 would have a graph of its own, and its block is thin: it goes uncompiled.
        if min(a.shape[-2], minus_b.shape[-2]) == 1:
            return function(a, minus_b, *rest)
        compiled = _compile(function, a.dim(), self.dtype, self.device)
        # One set of guards for every call, forward and backward: no gradients asked for, no autocast.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return compiled(*(tensor.detach() for tensor in (a, minus_b, *rest)))

    def scores(self, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        """``u[k, i, j]``."""
        scores: Tensor = self._run(_scores, a, b, w2, b2)
        return scores

    def active_sums(self, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_i weight 1[a_j + b_i > 0]`` and the same over j."""
        sums: tuple[Tensor, Tensor] = self._run(_active_sums, a, b, weight)
        return sums


@functools.cache
def _compile(function: Callable[..., Any], rank: int, dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    """``function`` compiled once for blocks of any size.

    Called here with four different sizes: whatever sizes are equal in a first call are taken for equal for ever, and
    the first call that differs would compile again.
    """
    compiled = torch.compile(function, dynamic=True, fullgraph=True)
    leading = (3,) if rank == 3 else ()
    a, minus_b = (torch.zeros(*leading, rows, 2 * VECTOR, dtype=dtype, device=device) for rows in (5, 7))
    rest = (a.new_zeros(2 * VECTOR), a.new_zeros(1)) if function is _scores else (a.new_zeros(*leading, 7, 5),)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            compiled(a, minus_b, *rest)
    except Exception as error:
        raise RuntimeError(
            f"`implementation` was 'compiled', but torch.compile failed ({type(error).__name__}); on a CPU it needs a "
            f"C++ compiler, such as g++, in PATH or named by CXX; use 'torch'"
        ) from error
    return compiled
