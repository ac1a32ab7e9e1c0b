"""Anchor selection: PyTorch's sort against the specification, and what must never be chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import anchor_counts, anchor_indices, select_anchors


def problem(lengths, length: int, width: int = 3, seed: int = 0, left: bool = False):
    """Random gradients and a mask of these lengths, padded on the right or the left."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(len(lengths), length, width, generator=generator, dtype=torch.float64)
    position = torch.arange(length)
    counts = torch.as_tensor(lengths).unsqueeze(1)
    mask = position >= length - counts if left else position < counts
    return grad, mask.to(torch.int64)


def assert_as_specified(grad, mask, cl, ch):
    """Both functions, with and without lengths; the oracle sees the gradient in float64."""
    marked, flat = (f(grad.double(), mask, cl, ch) for f in (reference.select_anchors, reference.anchor_indices))
    assert torch.equal(select_anchors(grad, mask, cl, ch), marked)
    assert torch.equal(anchor_indices(grad, mask, cl, ch), flat)
    lengths = mask.bool().sum(1).tolist()
    assert torch.equal(anchor_indices(grad, mask, cl, ch, lengths=lengths), flat)
    assert marked.sum() == len(flat) == anchor_counts(lengths, cl, ch)[1].sum()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("cl", "ch"), [(0.5, 0.9), (0.75, 0.95), (0.0, 1.0), (0.1, 0.2), (0.3, 0.3), (0, 0), (1, 1)])
def test_every_length_is_as_specified(cl, ch, left):
    assert_as_specified(*problem(range(1, 131), 130, left=left), cl, ch)


@pytest.mark.parametrize(("n", "count"), [(128, 52), (40, 16), (20, 8), (1, 0)])
def test_published_window_gives_the_published_counts(n, count):
    """One token: ranks from ceil(.5) = 1 up to ceil(.9) = 1, an empty window."""
    grad, mask = problem([n], 130)
    assert select_anchors(grad, mask).sum() == count
    assert anchor_indices(grad, mask).shape == (count,)


def test_counts_take_the_ceiling_in_double_precision():
    """100 * .07 is 7.000000000000001 in double precision; in single precision it would be 7."""
    assert math.ceil(100 * 0.07) == 8
    grad, mask = problem([100], 100)
    order = grad[0].norm(dim=1).argsort()
    assert torch.equal(anchor_indices(grad, mask, 0.0, 0.07), order[:8])
    assert select_anchors(grad, mask, 0.0, 0.07).sum() == 8
    starts, counts = anchor_counts([100, 20], 0.07, 0.9)
    assert (starts.tolist(), counts.tolist()) == ([8, 2], [82, 16])


def test_ties_are_ranked_by_position_in_long_sentences_too():
    grad, mask = problem([300, 200], 300, width=2)
    grad = grad.round()  # a handful of distinct norms
    assert_as_specified(grad, mask, 0.4, 0.6)
    assert_as_specified(torch.zeros_like(grad), mask, 0.5, 0.9)
    zeros = anchor_indices(torch.zeros(1, 10, 3), torch.ones(1, 10), 0.5, 0.9)
    assert zeros.tolist() == [5, 6, 7, 8]


def test_nan_ranks_as_infinity_and_padding_behind_both():
    grad = torch.tensor([math.nan, 1.0, math.inf, math.nan, 0.5, 9.0, math.nan]).reshape(1, 7, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    assert anchor_indices(grad, mask, 0.0, 1.0).tolist() == [4, 1, 0, 2, 3]
    assert anchor_indices(-grad, mask, 0.0, 1.0).tolist() == [4, 1, 0, 2, 3]
    assert anchor_indices(grad.flip(1), mask.flip(1), 0.0, 1.0).tolist() == [2, 5, 3, 4, 6]  # padding stands before NaN
    assert_as_specified(grad, mask, 0.2, 0.7)
    assert_as_specified(grad.flip(1), mask.flip(1), 0.2, 1.0)
    assert select_anchors(torch.full((1, 7, 2), math.nan), mask, 0.0, 1.0).tolist() == mask.bool().tolist()


def test_padding_is_never_chosen_whatever_its_gradient():
    for left in (False, True):
        grad, mask = problem([5, 12, 1], 12, left=left)
        expected = select_anchors(grad, mask)
        for junk in (0.0, 1e6, math.nan, math.inf):
            dirty = torch.where(mask.unsqueeze(-1) == 1, grad, junk)
            assert torch.equal(select_anchors(dirty, mask), expected)
            assert not (select_anchors(dirty, mask, 0.0, 1.0) & (mask == 0)).any()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_masks_of_any_dtype(dtype):
    """301 tokens: more than bfloat16 can count one by one."""
    grad, mask = problem([301, 260, 5], 301)
    assert_as_specified(grad, mask.to(dtype), 0.5, 0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norms_of_low_precision_gradients_are_taken_in_float32(dtype):
    """Norms that a half-precision result could not tell apart: the oracle ranks in float64."""
    grad, mask = problem([128] * 4, 128, width=64)
    assert_as_specified(grad.to(dtype), mask, 0.5, 0.9)


def test_holes_in_the_mask_and_strided_gradients():
    grad, mask = problem([16] * 3, 16)
    mask[0, 3] = mask[1, :2] = mask[2, ::2] = 0
    strided = grad.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert_as_specified(strided, mask, 0.25, 0.9)


def test_indices_gather_the_marked_rows_in_ascending_norm():
    grad, mask = problem([40, 20], 40)
    flat = anchor_indices(grad, mask)
    norms = grad.flatten(0, 1).norm(dim=1)[flat]
    assert flat.dtype == torch.int64
    assert (norms[:16].diff() >= 0).all()
    assert (norms[16:].diff() >= 0).all()
    assert (flat[:16] < 40).all()
    assert (flat[16:] >= 40).all()


def test_an_empty_window_gives_no_anchors():
    grad, mask = problem([1, 1], 4)
    assert anchor_indices(grad, mask).shape == (0,)
    assert not select_anchors(grad, mask).any()


def test_reference_implementation_is_the_specification():
    grad, mask = problem([7, 3], 7)
    assert torch.equal(select_anchors(grad, mask, implementation="reference"), reference.select_anchors(grad, mask))
    assert torch.equal(anchor_indices(grad, mask, implementation="reference"), reference.anchor_indices(grad, mask))


# --- bad input and compilation ------------------------------------------------------------------------------------

GRAD, MASK = torch.zeros(2, 6, 3), torch.ones(2, 6)


def replaced(value, *where):
    mask = MASK.clone()
    mask[where] = value
    return mask


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRAD, MASK, 0.9, 0.5), r"`cl` was 0.9 and `ch` 0.5; `cl` must not exceed `ch`"),
        ((GRAD, MASK, -0.1, 0.5), r"`cl` was -0.1; it must be a finite number in \[0.0, 1.0\]"),
        ((GRAD, MASK, 0.5, 1.1), r"`ch` was 1.1; it must be a finite number in \[0.0, 1.0\]"),
        ((GRAD, MASK, math.nan, 0.5), r"`cl` was nan"),
        ((GRAD, MASK, 0.5, math.nan), r"`ch` was nan"),
        ((GRAD, MASK, "0.5", 0.9), r"`cl` was '0.5'"),
        ((GRAD, MASK, True, 1), r"`cl` was True"),
        ((GRAD[0], MASK), r"`grad` has shape \[6, 3\]; it must be \[batch, length, d\]"),
        ((GRAD, MASK[:, :5]), r"`attention_mask` has shape \[2, 5\].*\[2, 6\]"),
        ((GRAD, MASK[0]), r"`attention_mask` was shape \[6\]; it must be a \[batch, length\] tensor"),
        ((GRAD, MASK.tolist()), r"`attention_mask` was list"),
        ((GRAD, MASK.to("meta")), r"`attention_mask` is on meta and the hidden states on cpu"),
        ((GRAD, replaced(2, 0, 3)), r"`attention_mask` holds values other than 0 and 1"),
        ((GRAD, replaced(0.5, 0, 3)), r"`attention_mask` holds values other than 0 and 1"),
        ((GRAD, replaced(0, 1)), r"`attention_mask` is all zero for sentence 1"),
    ],
)
@pytest.mark.parametrize("function", [select_anchors, anchor_indices])
def test_anchors_refuse(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize("lengths", [[6], [6, 6, 6], [6, 0], [6, 7], [6, -1]])
def test_lengths_must_be_one_count_a_sentence(lengths):
    with pytest.raises(ValueError, match=r"`lengths` was \[.*\]; it must give for each of 2 sentences 1 to 6 tokens"):
        anchor_indices(GRAD, MASK, lengths=lengths)


def test_lengths_are_held_against_the_mask():
    """Were they believed, padding would be chosen."""
    with pytest.raises(ValueError, match=r"`lengths` was \[6, 6\]; `attention_mask` counts \[6, 4\]"):
        anchor_indices(GRAD, replaced(0, 1, slice(4, None)), lengths=[6, 6])
    assert anchor_indices(GRAD, MASK, lengths=np.array([6, 6])).tolist() == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize("function", [select_anchors, anchor_indices])
def test_implementations_it_has_not(function):
    with pytest.raises(ValueError, match="`implementation` was 'cuda'"):
        function(GRAD, MASK, implementation="cuda")


@pytest.mark.parametrize("function", [select_anchors, anchor_indices])
def test_validate_false_skips_the_value_checks(function):
    wrong = replaced(2, 0, 3)
    assert torch.equal(function(GRAD, wrong, validate=False), function(GRAD, MASK))
    function(GRAD, replaced(0, 1), validate=False)


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    grad, mask = problem([9, 4, 1], 9)
    compiled = torch.compile(select_anchors, backend="eager", fullgraph=True)
    assert torch.equal(compiled(grad, mask), select_anchors(grad, mask))
    compiled = torch.compile(anchor_indices, backend="eager", fullgraph=True)
    assert torch.equal(compiled(grad, mask, lengths=[9, 4, 1]), anchor_indices(grad, mask))


# --- properties ---------------------------------------------------------------------------------------------------

windows = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), windows, st.integers(0, 10**6), st.booleans())
def test_any_window_is_as_specified(lengths, window, seed, left):
    grad, mask = problem(lengths, 12, seed=seed, left=left)
    assert_as_specified(grad, mask, *window)


@settings(max_examples=40, deadline=None)
@given(windows, st.integers(-60, 30), st.integers(0, 10**6))
def test_scaling_by_a_power_of_two_changes_nothing(window, exponent, seed):
    grad, mask = problem([11, 7], 11, seed=seed)
    grad = grad.float()
    scaled = anchor_indices(grad * 2.0**exponent, mask, *window)
    assert torch.equal(scaled, anchor_indices(grad, mask, *window))
