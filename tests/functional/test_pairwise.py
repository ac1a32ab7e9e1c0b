"""The pairwise log-sum-exp against the literal specification, and how its blocks are cut."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from contrastive_cases import (
    assert_no_worse_than_eager,
    assert_same,
    critic_inputs,
    indices,
    primitive_inputs,
    value_and_grads,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import club, info_nce, pairwise_mlp_logsumexp, streaming

sizes = st.integers(1, 12)


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


def functions_of_a_row():
    """Functions with hand-written gradients, of one matrix."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b, w2, b2 = (tensor.float().to(device) for tensor in primitive_inputs(5, 4, hidden=6))
    kernels = {"implementation": "triton"}
    return {
        "torch": lambda x: pairwise_mlp_logsumexp(x, b, w2, b2),
        "triton": lambda x: pairwise_mlp_logsumexp(x, b, w2, b2, **kernels),
        "club": club,
    }, a


@pytest.mark.parametrize("name", ["torch", "triton", "club"])
def test_a_second_derivative_is_refused_not_wrong(name):
    """With an incoming gradient that is a constant too: autograd itself would then take the result for one."""
    functions, a = functions_of_a_row()
    for outer in (torch.sum, lambda t: t.square().sum()):
        leaf = a.clone().requires_grad_()
        (plain,) = torch.autograd.grad(outer(functions[name](leaf)), leaf)
        (grad,) = torch.autograd.grad(outer(functions[name](leaf)), leaf, create_graph=True)
        assert torch.equal(grad, plain)
        with pytest.raises(RuntimeError, match=r"a second derivative was asked for.*implementation='reference'"):
            torch.autograd.grad(grad.sum() + leaf.square().sum(), leaf, retain_graph=True)
        with pytest.raises(RuntimeError, match="a second derivative was asked for"):
            (grad.sum() + leaf.square().sum()).backward()
    assert grad.requires_grad
    assert not plain.requires_grad


@pytest.mark.parametrize("hidden", [4])
@pytest.mark.parametrize(
    ("elements", "split"),
    [(1, "kij"), (4 * 7 * 3, "kij"), (4 * 7 * 7, "k"), (4 * 7 * 7 * 2, "k"), (4 * 7 * 7 * 100, "")],
)
def test_blocks_of_any_size_give_the_same_result(monkeypatch, elements, split, hidden):
    """32 pairs in chunks of 7: four 7 x 7 problems and one 4 x 4. Block sizes split the loops named."""
    inputs = critic_inputs(32, 32, hidden=hidden)
    bound = functools.partial(info_nce, chunk_size=7)
    expected = value_and_grads(functools.partial(reference.info_nce, chunk_size=7), inputs)
    monkeypatch.setattr(streaming, "block_elements", lambda device: elements)
    blocks = list(streaming._blocks(torch.empty(4, 7, hidden), torch.empty(4, 7, hidden), max(1, elements // hidden)))
    for axis, name in enumerate("kij"):
        assert (len({block[axis].start for block in blocks}) > 1) == (name in split)
    cells = [cell for block in blocks for cell in itertools.product(*(range(99)[s] for s in block))]
    covered = [(k, i, j) for k, i, j in cells if k < 4 and i < 7 and j < 7]
    assert sorted(covered) == list(itertools.product(range(4), range(7), range(7)))
    assert_same(value_and_grads(bound, inputs), expected)


def test_blocks_in_half_precision_and_all_pairs(monkeypatch):
    inputs = primitive_inputs(19, 13, hidden=40)
    monkeypatch.setattr(streaming, "block_elements", lambda device: 40 * 5)
    assert_no_worse_than_eager(pairwise_mlp_logsumexp, reference.pairwise_mlp_logsumexp, inputs, torch.bfloat16)
    assert_same(
        value_and_grads(pairwise_mlp_logsumexp, inputs), value_and_grads(reference.pairwise_mlp_logsumexp, inputs)
    )


def test_no_block_is_larger_than_allowed(monkeypatch):
    monkeypatch.setattr(streaming, "block_elements", lambda device: 1000)
    for k, j, i, hidden in itertools.product((1, 5), (1, 9, 300), (1, 7, 300), (1, 40, 300)):
        a, b = torch.empty(k, j, hidden), torch.empty(k, i, hidden)
        eager = streaming.Eager(a, b)
        room = eager.workspace.numel()
        assert room <= max(1000, hidden)
        for block in streaming._blocks(a, b, eager.pairs):
            sizes = [len(range(n)[s]) for s, n in zip(block, (k, i, j), strict=True)]
            assert math.prod(sizes) * hidden <= room


@pytest.mark.parametrize(("j", "i"), [(2048, 2048), (100_000, 100_000), (3, 5000), (5000, 3)])
def test_blocks_are_square_where_the_problem_allows(j, i):
    """Sums over few rows of a thin block, 3 x 2,048, were slower than the rest of the backward together."""
    _, rows, columns = next(streaming._blocks(torch.empty(1, j, 300), torch.empty(1, i, 300), 2**16))
    sides = len(range(i)[rows]), len(range(j)[columns])
    assert min(sides) == min(i, j) or max(sides) < 1.1 * min(sides)


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
