"""InfoNCE with the concatenating critic against the literal specification: values and all gradients."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from contrastive_cases import F64, assert_same, critic_inputs, indices, value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import info_nce

sizes = st.integers(1, 12)


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


def test_w2_may_be_a_row_or_a_vector_and_b2_a_scalar():
    local, global_, w1, b1, w2, b2 = critic_inputs(6, 6)
    expected = info_nce(local, global_, w1, b1, w2, b2)
    assert torch.equal(info_nce(local, global_, w1, b1, w2[0], b2[0]), expected)
    assert expected.shape == ()


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


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("indexed", [False, True])
def test_compiles_without_a_graph_break(chunk_size, indexed):
    torch._dynamo.reset()
    index = indices(9, 9, 9) if indexed else (None, None)
    bound = functools.partial(info_nce, local_index=index[0], pair_index=index[1], chunk_size=chunk_size)
    inputs = critic_inputs(9, 9)
    compiled = torch.compile(bound, backend="eager", fullgraph=True)
    assert_same(value_and_grads(compiled, inputs), value_and_grads(bound, inputs), tolerance=1e-14)


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
