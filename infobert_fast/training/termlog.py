"""The terms of the loss between two log lines: summed on the device, read on the host only when they are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["TermLog"]


class TermLog:
    """Weighted mean, least and greatest of each term since it was last read."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._names: list[str] = []
        self._sum = self._low = self._high = torch.empty(0)

    def add(self, terms: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Take one micro-batch's detached scalars and their weight in the mean; ``loss`` is left to the Trainer.

        Does not wait for the device.
        """
        names = [name for name in terms if name != "loss"]
        values = torch.stack([terms[name] for name in names]).double()
        if not self._weight:
            self._names, self._sum, self._low, self._high = names, weight * values, values, values
        else:
            self._sum = self._sum + weight * values
            self._low, self._high = torch.minimum(self._low, values), torch.maximum(self._high, values)
        self._weight += weight

    def state_dict(self) -> dict[str, Any]:
        """What has been taken and not read, for a checkpoint."""
        return {"weight": self._weight, "names": self._names, "values": [self._sum, self._low, self._high]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._weight, self._names = state["weight"], list(state["names"])
        self._sum, self._low, self._high = state["values"]

    def read(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over micro-batches and ranks, and their ranges; begin anew. ``gather`` stacks a row a rank."""
        if not self._weight:
            return {}
        weights = torch.full_like(self._sum, self._weight)
        rows = gather(torch.stack([self._sum, weights, self._low, self._high]).unsqueeze(0)).cpu()
        means, lows, highs = rows[:, 0].sum(0) / rows[:, 1].sum(0), rows[:, 2].min(0).values, rows[:, 3].max(0).values
        self._weight = 0.0
        logs = {}
        for name, mean, low, high in zip(self._names, means.tolist(), lows.tolist(), highs.tolist(), strict=True):
            logs[name] = mean
            logs[f"{name}_min"], logs[f"{name}_max"] = low, high
        return logs
