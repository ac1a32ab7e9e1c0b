"""NWJ and Donsker-Varadhan with the concatenating critic: the literal formulas, their edges, and their kernels."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from contrastive_cases import F64, assert_no_worse_than_eager, assert_same, critic_inputs, indices, value_and_grads

from infobert_fast import reference
from infobert_fast.functional import donsker_varadhan, info_nce, nwj

BOUNDS = [(nwj, reference.nwj), (donsker_varadhan, reference.donsker_varadhan)]
IDS = ["nwj", "donsker_varadhan"]


@pytest.mark.parametrize(("bound", "literal"), BOUNDS, ids=IDS)
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("pairs", [1, 2, 33, 130])
def test_equals_the_oracle(bound, literal, pairs, indexed):
    rows, distinct = (pairs // 2 + 1, pairs // 8 + 1) if indexed else (pairs, pairs)
    index = indices(pairs, rows, distinct) if indexed else (None, None)
    options = {"local_index": index[0], "pair_index": index[1]}
    inputs = critic_inputs(rows, distinct, hidden=40)
    got = value_and_grads(functools.partial(bound, **options), inputs)
    expected = value_and_grads(functools.partial(literal, **options), inputs)
    assert_same([got[0]], [expected[0]])
    # a lone pair's Donsker-Varadhan gradients are 0 but for the literal form's rounding
    for g, e in zip(got[1:], expected[1:], strict=True):
        assert (g - e).abs().max() <= 1e-10 * e.abs().max() + 1e-12


@pytest.mark.parametrize(("bound", "literal"), BOUNDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_no_worse_than_eager(bound, literal, dtype):
    index = indices(65, 65, 6)
    options = {"local_index": index[0], "pair_index": index[1]}
    fast, eager = (functools.partial(f, **options) for f in (bound, literal))
    assert_no_worse_than_eager(fast, eager, critic_inputs(65, 6, hidden=300, x_dim=24, y_dim=16), dtype)


@pytest.mark.parametrize(("bound", "literal"), BOUNDS, ids=IDS)
def test_reference_and_kernels(bound, literal):
    inputs = critic_inputs(9, 9)
    assert torch.equal(bound(*inputs, implementation="reference"), literal(*inputs))
    if not torch.cuda.is_available():  # float64 runs under the interpreter only
        kernels = value_and_grads(functools.partial(bound, implementation="triton"), inputs)
        assert_same(kernels, value_and_grads(literal, inputs))
    with pytest.raises(ValueError, match="`local` gives 4 pairs and `global_` 9"):
        bound(inputs[0][:4], *inputs[1:])
    with pytest.raises(TypeError, match="chunk_size"):
        bound(*inputs, chunk_size=3)


def test_a_constant_critic_knows_nothing():
    """T = c everywhere: Donsker-Varadhan 0 for any c, NWJ c - e^(c - 1), whose maximum is 0 at c = 1."""
    local, global_, w1, b1, w2, _ = critic_inputs(7, 7)
    for c in (-1.0, 1.0, 2.5):
        critic = (local, global_, w1, b1, 0 * w2, torch.full((1,), c, dtype=F64))
        assert abs(donsker_varadhan(*critic)) < 1e-14
        assert abs(nwj(*critic) - (c - math.exp(c - 1))) < 1e-14


def test_donsker_varadhan_lies_above_nwj_and_below_log_n():
    """log t <= t/e makes it the tighter of the two, for any critic."""
    for seed in range(5):
        inputs = critic_inputs(12, 12, seed=seed)
        assert nwj(*inputs) <= donsker_varadhan(*inputs) <= math.log(12)
        assert torch.isfinite(info_nce(*inputs))


def test_a_shift_of_the_critic_costs_donsker_varadhan_nothing_and_overflows_nothing():
    local, global_, w1, b1, w2, b2 = (tensor.float() for tensor in critic_inputs(12, 12))
    shifted = donsker_varadhan(local, global_, w1, b1, w2, b2 + 200)
    torch.testing.assert_close(shifted, donsker_varadhan(local, global_, w1, b1, w2, b2), rtol=0, atol=1e-4)
    assert nwj(local, global_, w1, b1, w2, b2 + 200) == -math.inf
