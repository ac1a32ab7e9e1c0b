"""The upper bounds with a Gaussian conditional: literal formulas, gradients, linear memory, digits."""

from __future__ import annotations

import sys

import pytest
import torch
from contrastive_cases import F64, assert_no_worse_than_eager, assert_same, value_and_grads

from infobert_fast import reference
from infobert_fast.functional import leave_one_out, streaming, variational_upper_bound


def gaussian(rows: int, width: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mu, logvar, y = (torch.randn(rows, width, generator=generator, dtype=F64) for _ in range(3))
    return mu, logvar.tanh(), y


@pytest.mark.parametrize("rows_a_block", [1, 3, 1000])
@pytest.mark.parametrize("rows", [2, 7, 33])
def test_leave_one_out_equals_the_oracle(monkeypatch, rows, rows_a_block):
    monkeypatch.setattr(
        sys.modules["infobert_fast.functional.gaussian"], "block_elements", lambda device: rows_a_block * rows * 5
    )
    inputs = gaussian(rows)
    assert_same(value_and_grads(leave_one_out, inputs), value_and_grads(reference.leave_one_out, inputs))


def test_variational_upper_bound_equals_the_oracle():
    inputs = gaussian(33)[:2]
    got = value_and_grads(variational_upper_bound, inputs)
    assert_same(got, value_and_grads(reference.variational_upper_bound, inputs))


def test_gradcheck():
    inputs = [tensor.requires_grad_() for tensor in gaussian(6, 3)]
    assert torch.autograd.gradcheck(leave_one_out, inputs)
    assert torch.autograd.gradgradcheck(leave_one_out, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_no_worse_than_eager(dtype):
    inputs = gaussian(40, 16)
    assert_no_worse_than_eager(leave_one_out, reference.leave_one_out, inputs, dtype)
    assert_no_worse_than_eager(variational_upper_bound, reference.variational_upper_bound, inputs[:2], dtype)


def test_a_common_offset_costs_no_digits():
    """Rows near 1,000 with variances of a hundredth: expanded squares would be off by a thousandth of 1e8."""
    mu, logvar, y = gaussian(40, 16)
    inputs = [t.float() for t in (0.1 * mu + 1000, logvar - 4, 0.1 * y + 1000)]
    got = value_and_grads(leave_one_out, inputs, torch.float32)
    exact = value_and_grads(reference.leave_one_out, inputs, F64)
    assert_same(got, exact, tolerance=1e-5)


def test_memory_is_that_of_a_block(monkeypatch):
    """The largest tensor that a forward and a backward make."""
    monkeypatch.setattr(sys.modules["infobert_fast.functional.gaussian"], "block_elements", lambda device: 3 * 64 * 5)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.untyped_storage().nbytes() // 8 if isinstance(out, torch.Tensor) else 0)
            return out

    with Watch():
        value_and_grads(leave_one_out, gaussian(64))
    assert max(sizes) == 3 * 64 * 5
    assert streaming.block_elements(torch.device("cpu")) > 2**20


def test_refuses():
    mu, logvar, y = gaussian(3)
    with pytest.raises(ValueError, match=r"`y` holds 1 row; .* at least two samples"):
        leave_one_out(mu[:1], logvar[:1], y[:1])
    with pytest.raises(ValueError, match=r"`logvar` has shape \[2, 5\]"):
        leave_one_out(mu, logvar[:2], y)
    with pytest.raises(ValueError, match=r"`logvar` has shape"):
        variational_upper_bound(mu, logvar[:2])


@pytest.mark.parametrize("position", range(3))
def test_nan_in_gives_nan_out(position):
    inputs = list(gaussian(5))
    inputs[position][0, 0] = torch.nan
    assert leave_one_out(*inputs).isnan()
