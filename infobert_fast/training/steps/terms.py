"""The terms of a step: what each pass was made of, detached, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Terms", "detached", "mean_of", "times"]


class Terms(NamedTuple):
    """Detached scalars of one micro-batch by name: their means over the passes, and those of each pass."""

    mean: dict[str, Tensor]
    passes: Sequence[Mapping[str, Tensor]]


def detached(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a pass, cut from its graph."""
    return {name: term.detach().float() for name, term in terms.items()}


def times(loss: Tensor, weight: float) -> Tensor:
    """``loss * weight``; of weight 1, which standard training has, the loss itself and no operation."""
    return loss if weight == 1 else loss * weight


def mean_of(passes: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each term over the passes."""
    if len(passes) == 1:
        return dict(passes[0])
    sums: dict[str, Tensor] = {}
    for terms in passes:
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term / len(passes)
    return sums
