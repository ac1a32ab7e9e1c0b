"""What stands around the critic: selecting and taking anchors, CLUB, FreeLB's start and ascent; bfloat16 on a GPU.

The roofline is bytes alone: operands read once and results written once, at the bandwidth of a copy in the same run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from infobert_fast import functional
from infobert_fast.benchmarks.harness.measuring import DEVICE, Work
from infobert_fast.functional import Implementation

SHAPES = [(4, 24, 768), *([(32, 128, 768)] if DEVICE == "cpu" else [(32, 128, 1024), (256, 128, 1024)])]
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
LITERAL_LIMIT = 96  # tokens


class Inputs(NamedTuple):
    """A batch without padding: its gradient, mask and lengths, embedded rows, partners, a perturbation, anchors."""

    grad: Tensor
    mask: Tensor
    lengths: list[int]
    h0: Tensor
    partners: Tensor
    delta: Tensor
    anchors: Tensor


def inputs(batch: int, length: int, d: int, dtype: torch.dtype, padded: bool = False) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    grad, h0, delta = (torch.randn(batch, length, d, generator=generator).to(DEVICE) for _ in range(3))
    lengths = [length - (3 * i if padded else 0) for i in range(batch)]
    mask = (torch.arange(length) < torch.tensor(lengths).unsqueeze(1)).long()
    partners = functional.sample_rows(mask, generator).to(DEVICE)
    mask = mask.to(DEVICE)
    anchors = functional.anchor_indices(grad.to(dtype), mask, lengths=lengths)
    wide = torch.promote_types(dtype, torch.float32)  # the perturbation's, whatever the gradient's
    delta = (0.01 * delta * mask.unsqueeze(-1)).to(wide)
    return Inputs(grad.to(dtype), mask, lengths, h0.to(dtype).requires_grad_(), partners, delta, anchors)


Wrap = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


def plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def anchors(x: Inputs, implementation: Implementation, wrap: Wrap = plain) -> tuple[Tensor, ...]:
    chosen = wrap(functional.anchor_indices)(
        x.grad, x.mask, lengths=x.lengths, implementation=implementation, validate=False
    )
    return (chosen,)


def rows(x: Inputs, implementation: Implementation, wrap: Wrap = plain) -> tuple[Tensor, ...]:
    taken = wrap(functional.take_rows)(
        x.h0.flatten(0, 1), x.anchors, distinct=True, implementation=implementation, validate=False
    )
    return taken.detach(), *torch.autograd.grad(taken, x.h0, taken.detach())


def club(x: Inputs, implementation: Implementation, wrap: Wrap = plain) -> tuple[Tensor, ...]:
    bound = wrap(functional.club)(x.h0, x.mask, implementation=implementation, validate=False)
    return bound.detach(), *torch.autograd.grad(bound, x.h0)


def club_sampled(x: Inputs, implementation: Implementation, wrap: Wrap = plain) -> tuple[Tensor, ...]:
    bound = wrap(functional.club_sampled)(x.h0, x.partners, x.mask, implementation=implementation, validate=False)
    return bound.detach(), *torch.autograd.grad(bound, x.h0)


def start(x: Inputs, implementation: Implementation, wrap: Wrap = plain) -> tuple[Tensor, ...]:
    return (wrap(functional.freelb_init)(x.delta, x.mask, 0.08, seed=7, implementation=implementation, validate=False),)


def ascent(x: Inputs, implementation: Implementation, wrap: Wrap = plain, max_norm: float = 0.0) -> tuple[Tensor, ...]:
    step = wrap(functional.freelb_step)
    return (step(x.delta, x.grad, x.mask, 0.04, max_norm, implementation=implementation, validate=False),)


def projected(x: Inputs, implementation: Implementation, wrap: Wrap = plain) -> tuple[Tensor, ...]:
    return ascent(x, implementation, wrap, 0.05)


PARTS = {part.__name__: part for part in (anchors, rows, club, club_sampled, start, ascent, projected)}


def least_bytes(part: str, batch: int, length: int, d: int, pairs: int) -> float:
    """Read once and written once, forward and backward: rows of half precision, a perturbation in float32."""
    tokens, size = batch * length * d, DTYPE.itemsize
    return {
        "anchors": size * tokens,
        "rows": size * (3 * pairs * d + tokens),
        "club": 3 * size * tokens,
        "club_sampled": 3 * size * tokens,
        "start": 4 * tokens,
        "ascent": (8 + size) * tokens,
        "projected": (8 + size) * tokens,
    }[part]


def by(implementation: Implementation) -> Callable[[str, Inputs], tuple[Tensor, ...]]:
    return lambda part, x: PARTS[part](x, implementation)


IMPLEMENTATIONS = {
    "literal": by("reference"),
    "eager": by("torch"),
    "compiled": lambda part, x: PARTS[part](x, "torch", compiled),
    "infobert-fast": by("auto"),
}


def check(function: Callable[[str, Inputs], tuple[Tensor, ...]], part: str) -> None:
    """On five sentences of 12 to 24 tokens, against the literal form in float64."""
    exact = PARTS[part](inputs(5, 24, 40, torch.float64, padded=True), "reference")
    for mine, theirs in zip(function(part, inputs(5, 24, 40, torch.float32, padded=True)), exact, strict=True):
        torch.testing.assert_close(mine.to(theirs.dtype), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regularizers(measure, gate, implementation, function, part, shape):
    if implementation == "literal" and shape[0] * shape[1] > LITERAL_LIMIT:
        pytest.skip("the literal form loops over tokens, or holds rows x rows x d")
    if DEVICE == "cpu" and implementation == "infobert-fast":
        pytest.skip("on a CPU it is the eager form")
    if DEVICE == "cpu" and implementation == "compiled":
        pytest.skip("on a CPU each part compiles for seconds")
    gate((implementation, part), lambda: check(function, part))
    x = inputs(*shape, DTYPE)
    measure(lambda: function(part, x), work=Work(bytes=least_bytes(part, *shape, len(x.anchors))))
