"""Each drop-in beside the public form that it replaces, forward + backward over N."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from infobert_fast.benchmarks.harness.measuring import DEVICE
from infobert_fast.benchmarks.suites.public_estimators import RESTATED
from infobert_fast.dropin import mi_estimators

WIDTH, HIDDEN = 20, 15  # of the public scripts
SIZES = (256, 1024, 4096)
LARGEST = 2**31  # bytes of the public form's largest tensor: it holds several


def public(name: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return RESTATED[name](module, x, y)


def ours(name: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    bound: Tensor = module(x, y)
    return bound


IMPLEMENTATIONS = {"public": public, "infobert-fast": ours}


def operands(name: str, samples: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    module = getattr(mi_estimators, name)(WIDTH, WIDTH, HIDDEN).to(DEVICE, dtype)
    x, y = torch.randn(2, samples, WIDTH).to(DEVICE, dtype)
    labels = name == "CLUBForCategorical"
    return module, x.requires_grad_(), torch.arange(samples, device=DEVICE) % WIDTH if labels else y.requires_grad_()


def check(function: Callable[..., Tensor], name: str) -> None:
    """Value and gradients against the public form in float64, on 33 samples of it."""
    module, x, y = operands(name, 33, torch.float64)
    leaves = [x, *module.parameters()]
    results = []
    for each in (public, function):
        torch.manual_seed(1)  # for those that draw partners
        value = each(name, module, x, y)
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        results.append([value, *(g for g in gradients if g is not None)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize("name", RESTATED)
def test_dropin(measure, gate, implementation, function, name, samples):
    columns = {"NWJ": 2 * WIDTH, "InfoNCE": 2 * WIDTH, "L1OutUB": max(samples, WIDTH)}.get(name, WIDTH)
    all_pairs = implementation == "public" and name not in ("CLUBSample", "MINE", "VarUB")
    if all_pairs and 4 * samples * samples * columns > LARGEST:
        pytest.skip(f"the public {name} holds {samples:,} x {samples:,} x {columns:,}")
    gate((implementation, name), lambda: check(function, name))
    module, x, y = operands(name, samples, torch.float32)
    measure(lambda: function(name, module, x, y).backward())
