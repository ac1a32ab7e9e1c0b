"""InfoNCE and the pairwise log-sum-exp: fast PyTorch against the literal specification, values and all gradients."""

from __future__ import annotations

import functools
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import IMPLEMENTATIONS, info_nce, pairwise_mlp_logsumexp, streaming

F64 = torch.float64
NAMES = ("local", "global_", "w1", "b1", "w2", "b2")


def critic_inputs(rows: int, distinct: int, hidden: int = 8, x_dim: int = 7, y_dim: int = 5, seed: int = 0):
    """local, global_, w1, b1, w2, b2 in float64: scores of order 1, bounds well between 0 and log n."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=F64)

    width = x_dim + y_dim
    return (
        normal(rows, x_dim),
        normal(distinct, y_dim),
        normal(hidden, width, scale=width**-0.5),
        normal(hidden, scale=0.3),
        normal(1, hidden, scale=2 * hidden**-0.5),
        normal(1),
    )


def primitive_inputs(j: int, i: int, hidden: int = 8, seed: int = 0):
    """a, b, w2, b2 in float64."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, hidden, generator=generator, dtype=F64) for n in (j, i))
    return a, b, torch.randn(hidden, generator=generator, dtype=F64) * hidden**-0.5, torch.ones(1, dtype=F64)


def indices(pairs: int, local_rows: int, global_rows: int, seed: int = 0):
    """Repeats on both sides, some rows unused."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(rows, (pairs,), generator=generator) for rows in (local_rows, global_rows))


def value_and_grads(function, inputs, dtype=F64):
    """The output and the gradient of a fixed, uneven weighting of it, in every input."""
    leaves = [tensor.detach().to(dtype).clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    weights = torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def assert_same(got, expected, tolerance=1e-10):
    """Equal up to ``tolerance`` of the largest entry, tensor by tensor (value first, then gradients)."""
    for n, (g, e) in enumerate(zip(got, expected, strict=True)):
        error, scale = (g.to(F64) - e.to(F64)).abs().max().item(), e.abs().max().item()
        assert error <= tolerance * scale + 1e-15, f"tensor {n}: error {error:.2e} at scale {scale:.2e}"


# --- float64: equal to the oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 32])
@pytest.mark.parametrize("pairs", [1, 2, 31, 32, 33, 257])
def test_info_nce_equals_the_oracle(pairs, chunk_size, indexed):
    rows, distinct = (pairs // 2 + 1, pairs // 8 + 1) if indexed else (pairs, pairs)
    index = indices(pairs, rows, distinct) if indexed else (None, None)
    options = {"local_index": index[0], "pair_index": index[1], "chunk_size": chunk_size}
    inputs = critic_inputs(rows, distinct)
    got = value_and_grads(functools.partial(info_nce, **options), inputs)
    assert_same(got, value_and_grads(functools.partial(reference.info_nce, **options), inputs))
    if pairs == 1 or chunk_size == 1:
        assert all((tensor == 0).all() for tensor in got), "a lone pair gives exactly 0, and no gradient"


@pytest.mark.parametrize("hidden", [1, 40, 300])
@pytest.mark.parametrize(("pairs", "chunk_size"), [(1, None), (33, None), (33, 32), (64, 7), (130, None)])
def test_info_nce_equals_the_oracle_at_every_width(pairs, chunk_size, hidden):
    inputs = critic_inputs(pairs, pairs, hidden=hidden, x_dim=11, y_dim=2)
    got = value_and_grads(functools.partial(info_nce, chunk_size=chunk_size), inputs)
    assert_same(got, value_and_grads(functools.partial(reference.info_nce, chunk_size=chunk_size), inputs))


@pytest.mark.parametrize("pairs", [5, 20])
@pytest.mark.parametrize("chunk_size", [None, 6])
def test_local_index_may_select_few_of_many_rows_or_repeat_them(pairs, chunk_size):
    """5 of 12 rows are gathered before the projection, 20 of 12 after it."""
    local_index, pair_index = indices(pairs, 12, 3)
    options = {"local_index": local_index, "pair_index": pair_index, "chunk_size": chunk_size}
    inputs = critic_inputs(12, 3)
    got = value_and_grads(functools.partial(info_nce, **options), inputs)
    assert_same(got, value_and_grads(functools.partial(reference.info_nce, **options), inputs))
    unused = [row for row in range(12) if row not in local_index.tolist()]
    assert unused
    assert (got[1][unused] == 0).all()


def test_a_shuffle_is_a_permutation_of_the_indices():
    local, global_, *critic = critic_inputs(20, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    indexed = info_nce(local, global_, *critic, local_index=order, pair_index=order, chunk_size=6)
    assert_same([indexed], [info_nce(local[order], global_[order], *critic, chunk_size=6)])
    assert abs(indexed - info_nce(local, global_, *critic, chunk_size=6)) > 1e-3  # the order does matter in chunks


def test_scores_far_into_the_linear_part_of_softplus_keep_their_digits():
    """Scores of 15 to 30: thresholded at 20, softplus would be off by 2e-9 of them."""
    local, global_, w1, b1, w2, _ = critic_inputs(9, 9)
    inputs = (local, global_, w1, b1, w2, torch.full((1,), 22.0, dtype=F64))
    scores = torch.relu(torch.cat([local, global_], 1) @ w1.T + b1) @ w2[0] + 22
    negative = []
    for i in range(9):
        row = torch.relu(torch.cat([local, global_[i].expand(9, -1)], 1) @ w1.T + b1) @ w2[0] + 22
        negative.append(torch.log((1 + row.exp()).mean()))
    expected = torch.log1p(scores.exp()).mean() - torch.stack(negative).mean()
    assert scores.max() > 20 > scores.min() - 5
    assert abs(info_nce(*inputs) - expected) < 1e-13
    assert abs(reference.info_nce(*inputs) - expected) < 1e-13


@pytest.mark.parametrize(("j", "i"), [(1, 1), (1, 33), (33, 1), (5, 3), (31, 257)])
@pytest.mark.parametrize("hidden", [1, 40, 300])
def test_primitive_is_rectangular(j, i, hidden):
    inputs = primitive_inputs(j, i, hidden)
    assert_same(
        value_and_grads(pairwise_mlp_logsumexp, inputs), value_and_grads(reference.pairwise_mlp_logsumexp, inputs)
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 40])
@pytest.mark.parametrize("pairs", [3, 33])
def test_primitive_with_indices(pairs, chunk_size):
    local_index, pair_index = indices(pairs, 9, 4)
    options = {"local_index": local_index, "pair_index": pair_index, "chunk_size": chunk_size}
    inputs = primitive_inputs(9, 4)
    got = value_and_grads(functools.partial(pairwise_mlp_logsumexp, **options), inputs)
    assert got[0].shape == ((4,) if chunk_size is None else (pairs,))
    assert_same(got, value_and_grads(functools.partial(reference.pairwise_mlp_logsumexp, **options), inputs))


def test_w2_may_be_a_row_or_a_vector_and_b2_a_scalar():
    local, global_, w1, b1, w2, b2 = critic_inputs(6, 6)
    expected = info_nce(local, global_, w1, b1, w2, b2)
    assert torch.equal(info_nce(local, global_, w1, b1, w2[0], b2[0]), expected)
    assert expected.shape == ()


def test_reference_implementation_is_the_specification():
    inputs = critic_inputs(6, 6)
    assert torch.equal(info_nce(*inputs, implementation="reference"), reference.info_nce(*inputs))
    inputs = primitive_inputs(5, 6)
    got = pairwise_mlp_logsumexp(*inputs, implementation="reference", chunk_size=None)
    assert torch.equal(got, reference.pairwise_mlp_logsumexp(*inputs))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_gradcheck(chunk_size):
    local_index, pair_index = indices(7, 5, 3)
    inputs = [tensor.requires_grad_() for tensor in critic_inputs(5, 3, hidden=4, x_dim=3, y_dim=2)]
    options = {"local_index": local_index, "pair_index": pair_index, "chunk_size": chunk_size}
    assert torch.autograd.gradcheck(functools.partial(info_nce, **options), inputs)
    inputs = [tensor.requires_grad_() for tensor in primitive_inputs(5, 3, hidden=4)]
    assert torch.autograd.gradcheck(functools.partial(pairwise_mlp_logsumexp, **options), inputs)


def test_a_second_derivative_is_refused_not_wrong():
    inputs = [tensor.requires_grad_() for tensor in critic_inputs(5, 5)]
    (grad,) = torch.autograd.grad(info_nce(*inputs), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


# --- lower precision: no worse than eager PyTorch ---------------------------------------------------------------------


def assert_no_worse_than_eager(fast, literal, inputs, dtype, factor=2.0):
    """Error against float64 on the same rounded inputs: at most ``factor`` times that of the literal form in ``dtype``,
    plus two roundings of the result, or of the terms of order 1 whose difference it is (the bound, the gradient of b2).
    """
    rounded = [tensor.to(dtype) for tensor in inputs]
    exact = value_and_grads(literal, rounded, F64)
    eager, got = value_and_grads(literal, rounded, dtype), value_and_grads(fast, rounded, dtype)
    for n, (g, e, x) in enumerate(zip(got, eager, exact, strict=True)):
        error, allowed = ((t.to(F64) - x).abs().max().item() for t in (g, e))
        scale = max(x.abs().max().item(), 1.0 if x.numel() == 1 else 0.0)
        allowed = factor * allowed + 2 * torch.finfo(dtype).eps * scale
        assert error <= allowed, f"tensor {n}: error {error:.2e}, eager allows {allowed:.2e}"


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pairs", "chunk_size", "indexed"), [(33, None, False), (130, None, True), (130, 32, True)])
def test_info_nce_is_no_worse_than_eager(pairs, chunk_size, indexed, dtype):
    index = indices(pairs, pairs, 6) if indexed else (None, None)
    options = {"local_index": index[0], "pair_index": index[1], "chunk_size": chunk_size}
    inputs = critic_inputs(pairs, 6 if indexed else pairs, hidden=300, x_dim=24, y_dim=16)
    fast, literal = (functools.partial(f, **options) for f in (info_nce, reference.info_nce))
    assert_no_worse_than_eager(fast, literal, inputs, dtype)


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


def test_autocast_resolves_mixed_dtypes_and_only_autocast():
    local, global_, *critic = (tensor.float() for tensor in critic_inputs(5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(local.bfloat16(), global_, *critic)
    assert torch.equal(mixed, info_nce(local.bfloat16().float(), global_, *critic))
    with pytest.raises(TypeError, match=r"`global_` has dtype torch.float32 and `local` torch.bfloat16.*autocast"):
        info_nce(local.bfloat16(), global_, *critic)


# --- how it computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [4])
@pytest.mark.parametrize(
    ("elements", "split"),
    [(1, "kij"), (4 * 3, "kij"), (4 * 7 * 3, "ki"), (4 * 7 * 7 * 2, "k"), (4 * 7 * 7 * 100, "")],
)
def test_blocks_of_any_size_give_the_same_result(monkeypatch, elements, split, hidden):
    """32 pairs in chunks of 7: four 7 x 7 problems and one 4 x 4. Block sizes split the loops named."""
    inputs = critic_inputs(32, 32, hidden=hidden)
    bound = functools.partial(info_nce, chunk_size=7)
    expected = value_and_grads(functools.partial(reference.info_nce, chunk_size=7), inputs)
    monkeypatch.setattr(streaming, "_block_elements", lambda device: elements)
    blocks = list(streaming._blocks(torch.empty(4, 7, hidden), torch.empty(4, 7, hidden)))
    for axis, name in enumerate("kij"):
        assert (len({block[axis].start for block in blocks}) > 1) == (name in split)
    cells = [cell for block in blocks for cell in itertools.product(*(range(99)[s] for s in block))]
    covered = [(k, i, j) for k, i, j in cells if k < 4 and i < 7 and j < 7]
    assert sorted(covered) == list(itertools.product(range(4), range(7), range(7)))
    assert_same(value_and_grads(bound, inputs), expected)


def test_blocks_in_half_precision_and_all_pairs(monkeypatch):
    inputs = primitive_inputs(19, 13, hidden=40)
    monkeypatch.setattr(streaming, "_block_elements", lambda device: 40 * 5)
    assert_no_worse_than_eager(pairwise_mlp_logsumexp, reference.pairwise_mlp_logsumexp, inputs, torch.bfloat16)
    assert_same(
        value_and_grads(pairwise_mlp_logsumexp, inputs), value_and_grads(reference.pairwise_mlp_logsumexp, inputs)
    )


def test_no_block_is_larger_than_allowed(monkeypatch):
    monkeypatch.setattr(streaming, "_block_elements", lambda device: 1000)
    for k, j, i, hidden in itertools.product((1, 5), (1, 9, 300), (1, 7, 300), (1, 40, 300)):
        a, b = torch.empty(k, j, hidden), torch.empty(k, i, hidden)
        room = streaming._workspace(a, b).numel()
        assert room <= max(1000, hidden)
        for block in streaming._blocks(a, b):
            sizes = [len(range(n)[s]) for s, n in zip(block, (k, i, j), strict=True)]
            assert math.prod(sizes) * hidden <= room


def test_strided_inputs():
    inputs = critic_inputs(33, 33)
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs[3:]]
    strided = [tensor.t().contiguous().t() for tensor in inputs[:3]] + strided
    assert not any(tensor.is_contiguous() for tensor in strided if tensor.numel() > 1)
    for chunk_size in (None, 7):
        leaves, plain = ([t.detach().requires_grad_() for t in group] for group in (strided, inputs))
        got, expected = (info_nce(*group, chunk_size=chunk_size) for group in (leaves, plain))
        assert_same([got, *torch.autograd.grad(got, leaves)], [expected, *torch.autograd.grad(expected, plain)])


def test_inputs_are_left_as_they_were():
    inputs = critic_inputs(9, 9)
    copies = [tensor.clone() for tensor in inputs]
    value_and_grads(info_nce, inputs)
    primitive = primitive_inputs(4, 4)
    before = [tensor.clone() for tensor in primitive]
    pairwise_mlp_logsumexp(*primitive)
    assert all(torch.equal(t, c) for t, c in zip([*inputs, *primitive], [*copies, *before], strict=True))


@pytest.mark.parametrize("chunk_size", [None, 32])
def test_two_runs_give_the_same_bits(chunk_size):
    """Rows that repeat, and enough of them that PyTorch would sum a plain gather's gradients by atomics."""
    local_index, pair_index = indices(600, 300, 4)
    inputs = critic_inputs(300, 4, hidden=128)
    options = {"local_index": local_index, "pair_index": pair_index, "chunk_size": chunk_size}
    runs = [value_and_grads(functools.partial(info_nce, **options), inputs, torch.float32) for _ in range(6)]
    for run in runs[1:]:
        assert all(torch.equal(first, again) for first, again in zip(runs[0], run, strict=True))


def test_two_uses_in_one_graph_add_up():
    inputs = critic_inputs(12, 12)
    parts = [value_and_grads(functools.partial(info_nce, chunk_size=c), inputs) for c in (None, 5)]
    both = value_and_grads(lambda *t: info_nce(*t) + info_nce(*t, chunk_size=5), inputs)
    assert_same(both, [first + second for first, second in zip(*parts, strict=True)])


@pytest.mark.parametrize("needed", range(6))
def test_gradient_of_one_input_alone(needed):
    inputs = critic_inputs(12, 12)
    expected = value_and_grads(info_nce, inputs)[1 + needed]
    leaf = inputs[needed].clone().requires_grad_()
    out = info_nce(*inputs[:needed], leaf, *inputs[needed + 1 :])
    assert_same(torch.autograd.grad(out, leaf), [expected])


# --- NaN and infinity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("position", range(6), ids=NAMES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_info_nce_of_nan_is_nan_and_of_infinity_not_finite(poison, position, chunk_size):
    inputs = [tensor.clone() for tensor in critic_inputs(9, 9)]
    inputs[position].view(-1)[-1] = poison
    value = info_nce(*inputs, chunk_size=chunk_size)
    if NAMES[position] == "b2" and poison == -math.inf:
        assert value == 0  # the limit: a critic that is 0 everywhere
    else:
        assert value.isnan() if math.isnan(poison) else not value.isfinite()


@pytest.mark.parametrize("position", range(4), ids=["a", "b", "w2", "b2"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_primitive_of_nan_is_nan_and_of_infinity_not_finite(poison, position):
    inputs = list(primitive_inputs(5, 6))
    inputs[position].view(-1)[-1] = poison
    value = pairwise_mlp_logsumexp(*inputs)
    assert value.isnan().any() if math.isnan(poison) else not value.isfinite().all()


@pytest.mark.parametrize("position", range(6), ids=NAMES)
def test_nan_reaches_the_gradients(position):
    inputs = [tensor.clone() for tensor in critic_inputs(9, 9)]
    inputs[position].view(-1)[0] = math.nan
    assert all(grad.isnan().any() for grad in value_and_grads(info_nce, inputs)[1:])


# --- bad input ----------------------------------------------------------------------------------------------------


def call(*, local=(4, 7), global_=(4, 5), w1=(8, 12), b1=(8,), w2=(1, 8), b2=(1,), dtype=torch.float32, **options):
    """info_nce of zeros of these shapes (or of the tensors given)."""
    given = {"local": local, "global_": global_, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    tensors = {n: v if isinstance(v, torch.Tensor) else torch.zeros(v, dtype=dtype) for n, v in given.items()}
    return info_nce(**tensors, **options)


def test_the_plain_call_is_accepted():
    assert call() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"global_": (3, 5)}, ValueError, r"`local` gives 4 pairs and `global_` 3; .*counts must agree.*`pair_index`"),
        ({"pair_index": torch.zeros(3, dtype=torch.int64)}, ValueError, r"`local` gives 4 pairs and `pair_index` 3"),
        ({"local_index": torch.zeros(5, dtype=torch.int64)}, ValueError, r"`local_index` gives 5 pairs and `global_`"),
        ({"local": (4, 8)}, ValueError, r"`w1` is 12 wide; it must be 13 wide"),
        ({"local": (4,)}, ValueError, r"`local` has shape \[4\]; it must be a matrix"),
        ({"global_": (4, 1, 5)}, ValueError, r"`global_` has shape \[4, 1, 5\]; it must be a matrix"),
        ({"b1": (7,)}, ValueError, r"`b1` has shape \[7\].*\[8\]"),
        ({"w2": (1, 9)}, ValueError, r"`w2` has shape \[9\].*\[8\]"),
        ({"b2": (4,)}, ValueError, r"`b2` has shape \[4\].*\[1\]"),
        ({"global_": torch.zeros(4, 5, device="meta")}, ValueError, r"`global_` is on meta and `local` on cpu.*`.to"),
        ({"w1": torch.zeros(8, 12, device="meta")}, ValueError, r"`w1` is on meta and `local` on cpu"),
        ({"b2": torch.zeros(1, device="meta")}, ValueError, r"`b2` is on meta and `local` on cpu"),
        ({"global_": torch.zeros(4, 5, dtype=F64)}, TypeError, r"`global_` has dtype torch.float64 and `local`"),
        ({"w2": torch.zeros(1, 8, dtype=F64)}, TypeError, r"`w2` has dtype torch.float64 and `local` torch.float32"),
        ({"dtype": torch.int64}, TypeError, r"`local` has dtype torch.int64; it must be a floating dtype"),
        ({"local": (0, 7), "global_": (0, 5)}, ValueError, r"`local` holds zero rows.*at least one pair"),
        ({"global_": (0, 5)}, ValueError, r"`global_` holds zero rows.*at least one pair"),
        ({"pair_index": torch.tensor([0, 1, 2, 4])}, IndexError, r"`pair_index` holds values from 0 to 4.*\[0, 4\)"),
        ({"pair_index": torch.tensor([0, -1, 2, 3])}, IndexError, r"`pair_index` holds values from -1 to 3"),
        ({"local_index": torch.tensor([0, 1, 2, 9])}, IndexError, r"`local_index` holds values from 0 to 9.*has 4"),
        ({"pair_index": torch.zeros(4, dtype=torch.int32)}, TypeError, r"`pair_index` was torch.int32.*torch.int64"),
        ({"pair_index": torch.zeros(4)}, TypeError, r"`pair_index` was torch.float32"),
        ({"pair_index": torch.ones(4, dtype=torch.bool)}, TypeError, r"`pair_index` was torch.bool"),
        ({"pair_index": [0, 1, 2, 3]}, TypeError, r"`pair_index` was list"),
        ({"pair_index": torch.zeros(4, 1, dtype=torch.int64)}, TypeError, r"`pair_index` was .* of shape \[4, 1\]"),
        ({"pair_index": torch.zeros(0, dtype=torch.int64)}, ValueError, r"`pair_index` is empty.*at least one pair"),
        ({"local_index": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, r"`local_index` is on meta"),
        ({"chunk_size": 0}, ValueError, r"`chunk_size` was 0; it must be None or an integer of at least 1"),
        ({"chunk_size": -1}, ValueError, r"`chunk_size` was -1"),
        ({"chunk_size": 1.5}, ValueError, r"`chunk_size` was 1.5"),
        ({"chunk_size": True}, ValueError, r"`chunk_size` was True"),
        ({"implementation": "cuda"}, ValueError, r"`implementation` was 'cuda'; it must be one of 'auto'"),
        ({"precision": "half"}, ValueError, r"`precision` was 'half'; it must be one of 'exact', 'fast'"),
        ({"precision": "half", "implementation": "reference"}, ValueError, r"`precision` was 'half'"),
    ],
)  # fmt: skip
def test_info_nce_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4, 8), (4, 7), (8,), (1,)), {}, r"`b` is 7 wide; it must be 8 wide"),
        (((4, 8), (4, 8), (7,), (1,)), {}, r"`w2` has shape \[7\]"),
        (((4, 8), (4, 8), (8,), (4,)), {}, r"`b2` has shape \[4\]"),
        (((4, 8), (3, 8), (8,), (1,)), {"chunk_size": 2}, r"`a` gives 4 pairs and `b` 3; chunks need one of each"),
        (((0, 8), (3, 8), (8,), (1,)), {}, r"`a` holds zero rows"),
        (((4, 8), (4, 8), (8,), (1,)), {"chunk_size": 0}, r"`chunk_size` was 0"),
        (((4, 8), (4, 8), (8,), (1,)), {"precision": "half"}, r"`precision` was 'half'"),
        (((4, 8), (4, 8), (8,), (1,)), {"implementation": "cuda"}, r"`implementation` was 'cuda'"),
    ],
)
def test_primitive_refuses(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        pairwise_mlp_logsumexp(*(torch.zeros(shape) for shape in shapes), **options)


def test_triton_on_cpu_tensors_says_why_not(monkeypatch):
    """The reason is the missing kernel, the missing package or the tensors' device; the way out is named."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    why = r"`implementation` was 'triton', but .*(no Triton kernel|not installed|on cpu).*; use 'torch'"
    with pytest.raises(ValueError, match=why):
        call(implementation="triton")
    with pytest.raises(ValueError, match=why):
        pairwise_mlp_logsumexp(*primitive_inputs(3, 3), implementation="triton")


@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_precision_fast_is_accepted_where_no_kernel_has_it(implementation):
    assert implementation in IMPLEMENTATIONS
    inputs = critic_inputs(6, 6)
    assert torch.equal(info_nce(*inputs, implementation=implementation, precision="fast"), info_nce(*inputs))


def test_validate_false_reads_no_index_values():
    wrong = torch.tensor([0, 1, 2, 4])
    with pytest.raises(IndexError, match="out of range"):  # PyTorch's own words: ours were skipped
        call(pair_index=wrong, validate=False)


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("indexed", [False, True])
def test_compiles_without_a_graph_break(chunk_size, indexed):
    torch._dynamo.reset()
    index = indices(9, 9, 9) if indexed else (None, None)
    bound = functools.partial(info_nce, local_index=index[0], pair_index=index[1], chunk_size=chunk_size)
    inputs = critic_inputs(9, 9)
    compiled = torch.compile(bound, backend="eager", fullgraph=True)
    assert_same(value_and_grads(compiled, inputs), value_and_grads(bound, inputs), tolerance=1e-14)


# --- speed and memory -----------------------------------------------------------------------------------------------

MEASURE = """
import json, sys, time
import torch
from infobert_fast.functional import info_nce

implementation, repeats = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(2)

def resident(key):  # not ru_maxrss, which a child inherits from whoever started it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

def inputs(n, d=768, hidden=300):
    torch.manual_seed(0)
    shapes = (n, d), (n, d), (hidden, 2 * d), (hidden,), (1, hidden), (1,)
    return [(0.03 * torch.randn(*shape)).requires_grad_() for shape in shapes]

def step(tensors):
    return torch.autograd.grad(info_nce(*tensors, implementation=implementation), tensors)

step(inputs(8))
tensors, wall, cpu = inputs(512), [], []
before = resident("VmRSS")
for _ in range(repeats):
    start = time.perf_counter(), time.process_time()
    step(tensors)
    wall.append(time.perf_counter() - start[0])
    cpu.append(time.process_time() - start[1])
print(json.dumps({"wall": min(wall), "cpu": min(cpu), "mib": resident("VmHWM") - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_speed_and_memory_against_the_literal_form():
    """N = 512, d = 768, H = 300, float32, forward + backward: 15 times the speed, 1/20 of the extra peak memory.

    Robust on a shared machine: wall and processor time must both show it, ours by the best of several steps. Neighbours
    can lengthen the literal form's wall time, but not in our favour alone: they do not count as its processor time.
    Extra memory is the process's peak less what it held before; an import's earlier peak only counts against us.
    """

    def measure(implementation: str, repeats: int) -> dict[str, float]:
        command = [sys.executable, "-c", MEASURE, implementation, str(repeats)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ours, literal = measure("torch", 6), measure("reference", 1)
    wall, cpu = (literal[clock] / ours[clock] for clock in ("wall", "cpu"))
    memory = literal["mib"] / ours["mib"]
    print(f"ours {ours}, literal {literal}: {wall:.0f} (cpu {cpu:.0f}) times the speed, 1/{memory:.0f} of the memory")
    assert memory >= 20
    assert min(wall, cpu) >= 15


# --- properties -----------------------------------------------------------------------------------------------------

sizes = st.integers(1, 12)


@settings(max_examples=40, deadline=None)
@given(pairs=st.integers(1, 25), chunk_size=st.integers(1, 30), hidden=sizes, x_dim=sizes, y_dim=sizes)
def test_chunking_is_the_mean_of_the_chunks_calls(pairs, chunk_size, hidden, x_dim, y_dim):
    local, global_, *critic = critic_inputs(pairs, pairs, hidden, x_dim, y_dim)
    chunks = zip(local.split(chunk_size), global_.split(chunk_size), strict=True)
    expected = torch.stack([info_nce(x, y, *critic) for x, y in chunks]).mean()
    assert_same([info_nce(local, global_, *critic, chunk_size=chunk_size)], [expected], tolerance=1e-11)
    assert expected <= math.log(min(chunk_size, pairs)) + 1e-12


@settings(max_examples=40, deadline=None)
@given(pairs=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_all_pairs_bound_ignores_the_order_of_pairs(pairs, seed):
    local, global_, *critic = critic_inputs(pairs, pairs, seed=seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(pairs))
    torch.testing.assert_close(
        info_nce(local[order], global_[order], *critic), info_nce(local, global_, *critic), rtol=1e-11, atol=1e-13
    )


@settings(max_examples=40, deadline=None)
@given(j=sizes, i=sizes, hidden=sizes, chunk_size=st.none() | st.integers(1, 14), seed=st.integers(0, 10**6))
def test_primitive_equals_the_oracle_for_any_shape(j, i, hidden, chunk_size, seed):
    inputs = primitive_inputs(j, i, hidden, seed)
    local_index, pair_index = indices(j + i, j, i, seed)
    options = {"local_index": local_index, "pair_index": pair_index, "chunk_size": chunk_size}
    got, expected = (
        value_and_grads(functools.partial(function, **options), inputs)
        for function in (pairwise_mlp_logsumexp, reference.pairwise_mlp_logsumexp)
    )
    assert_same(got, expected, tolerance=1e-9)  # a gradient may nearly cancel


@settings(max_examples=30, deadline=None)
@given(copies=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_repeating_every_negative_adds_its_logarithm(copies, seed):
    """logsumexp over c copies of every row is log c more."""
    a, b, w2, b2 = primitive_inputs(4, 3, seed=seed)
    repeated = torch.arange(4).repeat(copies)
    got = pairwise_mlp_logsumexp(a, b, w2, b2, local_index=repeated)
    torch.testing.assert_close(got, pairwise_mlp_logsumexp(a, b, w2, b2) + math.log(copies))
