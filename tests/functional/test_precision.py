"""Lower precision, offsets and autocast: no worse than eager PyTorch in the same dtype."""

from __future__ import annotations

import functools

import pytest
import torch
from contrastive_cases import (
    F64,
    assert_no_worse_than_eager,
    assert_same,
    critic_inputs,
    indices,
    primitive_inputs,
    value_and_grads,
)

from infobert_fast import reference
from infobert_fast.functional import info_nce, pairwise_mlp_logsumexp

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pairs", "chunk_size", "indexed"), [(33, None, False), (130, None, True), (130, 32, True)])
def test_info_nce_is_no_worse_than_eager(pairs, chunk_size, indexed, dtype):
    index = indices(pairs, pairs, 6) if indexed else (None, None)
    options = {"local_index": index[0], "pair_index": index[1], "chunk_size": chunk_size}
    distinct = 6 if indexed else pairs
    draws = [critic_inputs(pairs, distinct, hidden=300, x_dim=24, y_dim=16, seed=seed) for seed in range(4)]
    fast, literal = (functools.partial(f, **options) for f in (info_nce, reference.info_nce))
    assert_no_worse_than_eager(fast, literal, draws, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_primitive_is_no_worse_than_eager(dtype):
    inputs = primitive_inputs(65, 40, hidden=300)
    assert_no_worse_than_eager(pairwise_mlp_logsumexp, reference.pairwise_mlp_logsumexp, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_value_and_gradients(dtype):
    value, *grads = value_and_grads(info_nce, critic_inputs(5, 5), dtype)
    assert value.dtype == torch.float32
    assert all(grad.dtype == dtype for grad in grads)


def test_gradients_of_repeated_bfloat16_rows_are_summed_in_float32():
    """2,000 pairs share one row: a bfloat16 sum would stall once it is 256 times its terms."""
    pairs = 2000
    pair_index = torch.zeros(pairs, dtype=torch.int64)
    local, _, *critic = critic_inputs(pairs, 1, hidden=16)
    inputs = [tensor.bfloat16() for tensor in (local, torch.ones(1, 5), *critic)]
    bound = functools.partial(info_nce, pair_index=pair_index, chunk_size=8)
    exact, got = (value_and_grads(bound, inputs, dtype)[2] for dtype in (F64, torch.bfloat16))
    assert_same([got], [exact], tolerance=0.02)


def relative_errors(got, exact):
    return [((g.to(F64) - e).abs().max() / e.abs().max()).item() for g, e in zip(got, exact, strict=True)]


def test_a_common_offset_costs_no_digits():
    """a + 50, b - 50: the scores are unchanged; dw2 is a sum of products with a and b."""
    a, b, w2, b2 = primitive_inputs(64, 48, hidden=300)
    rounded = [tensor.float() for tensor in (a + 50, b - 50, w2, b2)]
    got = value_and_grads(pairwise_mlp_logsumexp, rounded, torch.float32)
    exact = value_and_grads(reference.pairwise_mlp_logsumexp, rounded, F64)
    assert max(relative_errors(got, exact)) < 2e-6


def test_info_nce_with_an_offset_is_no_worse_than_eager():
    """Local rows share a large mean that b1 takes away again."""
    local, global_, w1, b1, w2, b2 = critic_inputs(64, 64, hidden=300, x_dim=24, y_dim=16)
    shift = 50 * torch.ones(24, dtype=F64)
    inputs = (local + shift, global_, w1, b1 - w1[:, :24] @ shift, w2, b2)
    assert_no_worse_than_eager(info_nce, reference.info_nce, inputs, torch.float32)


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_autocast_with_float32_parameters(chunk_size):
    """Value and float32 gradients no further from float64 than the eager critic's under the same autocast."""
    inputs = [tensor.float() for tensor in critic_inputs(50, 50, hidden=64, x_dim=24, y_dim=16)]
    bound = functools.partial(info_nce, chunk_size=chunk_size)
    literal = functools.partial(reference.info_nce, chunk_size=chunk_size)
    exact = value_and_grads(literal, inputs, F64)

    def under_autocast(function):
        with torch.autocast("cpu", torch.bfloat16):
            return value_and_grads(function, inputs, torch.float32)

    got, eager = under_autocast(bound), under_autocast(literal)
    assert all(tensor.dtype == torch.float32 for tensor in got)
    for g, e, x in zip(got, eager, exact, strict=True):
        error, allowed = ((t.to(F64) - x).abs().max().item() for t in (g, e))
        assert error <= 2 * allowed + 2 * torch.finfo(torch.bfloat16).eps * x.abs().max().item()


def test_a_backward_within_autocast_has_the_bits_of_one_outside():
    inputs = [tensor.float().requires_grad_() for tensor in primitive_inputs(40, 40, hidden=32)]
    with torch.autocast("cpu", torch.bfloat16):
        value = pairwise_mlp_logsumexp(*inputs, implementation="torch").sum()
        within = torch.autograd.grad(value, inputs, retain_graph=True)
    assert all(map(torch.equal, within, torch.autograd.grad(value, inputs)))


def test_autocast_resolves_mixed_dtypes_and_only_autocast():
    local, global_, *critic = (tensor.float() for tensor in critic_inputs(5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(local.bfloat16(), global_, *critic)
    assert torch.equal(mixed, info_nce(local.bfloat16().float(), global_, *critic))
    with pytest.raises(TypeError, match=r"`global_` has dtype torch.float32 and `local` torch.bfloat16.*autocast"):
        info_nce(local.bfloat16(), global_, *critic)
