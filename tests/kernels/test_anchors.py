"""Selection by counted ranks against Python's sort, in every length that a tile can meet."""

import math

import pytest
import torch

from infobert_fast import reference
from infobert_fast.functional import anchor_counts
from infobert_fast.kernels import anchors

LENGTHS = [*range(1, 131), 511, 512, 513]


def problem(lengths, length, width, device, seed=0):
    """Gradients and a mask of holes: tokens of each sentence anywhere in its row."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(len(lengths), length, width, generator=generator)
    place = torch.rand(len(lengths), length, generator=generator).argsort(1)
    return grad.to(device), (place < torch.tensor(lengths).unsqueeze(1)).to(device)


def assert_as_specified(grad, mask, cl=0.5, ch=0.9):
    exact, host = grad.double().cpu(), mask.cpu()
    flat = reference.anchor_indices(exact, host, cl, ch)
    assert torch.equal(anchors.select_anchors(grad, mask, cl, ch).cpu(), reference.select_anchors(exact, host, cl, ch))
    count = int(anchor_counts(host.bool().sum(1).tolist(), cl, ch)[1].sum())
    assert count == len(flat)
    assert torch.equal(anchors.anchor_indices(grad, mask, cl, ch, count).cpu(), flat)


def test_every_length(device, monkeypatch):
    """One launch for lengths 1 to 130 and one for those about 512: one tile of ranks, several, ragged ones."""
    monkeypatch.setattr(anchors, "NORM_TOKENS", 64)  # fewer programs to interpret
    assert_as_specified(*problem(LENGTHS[:130], 130, 24, device))
    assert_as_specified(*problem(LENGTHS[130:], 513, 24, device), 0.75, 0.95)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [16, 600])
def test_dtypes_and_widths(dtype, width, device):
    """A width below a tile and one of a ragged second tile; ranks in the norms of what was given, not of its origin."""
    grad, mask = problem([70, 33, 1], 70, width, device)
    assert_as_specified(grad.to(dtype), mask, 0.2, 0.7)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_masks_of_any_dtype(dtype, device):
    grad, mask = problem([70, 33, 1], 70, 3, device)
    assert_as_specified(grad, mask.to(dtype))


def test_ties_are_ranked_by_position(device):
    """Across tiles of 64 too: all norms equal, a few values, zero and subnormal gradients."""
    grad, mask = problem([200, 130, 64], 200, 2, device)
    for tied in (torch.zeros_like(grad), torch.ones_like(grad), grad.round(), 1e-42 * grad.sign()):
        assert_as_specified(tied, mask, 0.3, 0.6)


def test_nan_ranks_as_infinity_and_padding_behind_both(device):
    grad = torch.tensor([math.nan, 1.0, math.inf, math.nan, 0.5, 9.0, math.nan, math.nan], device=device)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 1]], device=device)
    got = anchors.anchor_indices(grad.reshape(1, 8, 1), mask, 0.0, 1.0, 6)
    assert got.tolist() == [4, 1, 5, 2, 3, 7]
    assert_as_specified(grad.reshape(1, 8, 1), mask, 0.4, 1.0)
    assert anchors.select_anchors(torch.full((1, 8, 2), math.nan, device=device), mask, 0.0, 1.0).equal(mask.bool())


def test_strides(device):
    grad, mask = problem([40, 7, 100], 100, 6, device)
    order = torch.empty(6, 100, 3, device=device).permute(2, 1, 0).copy_(grad)
    wide = torch.zeros(3, 100, 12, device=device)[..., ::2].copy_(grad)
    cut = torch.zeros(3, 130, device=device)[:, 30:].copy_(mask)
    for strided in (order, wide, grad[:1].expand(3, -1, -1)):
        assert_as_specified(strided, cut)


def test_the_window_is_taken_in_double_precision(device):
    """100 * .07 is 7.000000000000001 in double precision; in single precision it would be 7."""
    grad, mask = problem([100, 20], 100, 3, device)
    assert math.ceil(100 * 0.07) == 8
    assert_as_specified(grad, mask, 0.0, 0.07)
    assert_as_specified(grad, mask, 0.07, 1.0)


def test_empty_windows_and_sentences_of_padding(device):
    grad, mask = problem([5, 5], 5, 3, device)
    assert_as_specified(grad, mask, 0.3, 0.3)
    mask[0] = False
    got = anchors.anchor_indices(grad, mask, 0.5, 0.9, 2)
    assert torch.equal(got.cpu(), reference.anchor_indices(grad[1:].cpu(), mask[1:].cpu()) + 5)
    assert not anchors.select_anchors(grad, mask, 0.0, 1.0)[0].any()
    assert anchors.select_anchors(grad[:0], mask[:0], 0.0, 1.0).shape == (0, 5)


def test_a_count_that_is_too_large_or_small_writes_nothing_else(device):
    grad, mask = problem([10, 10], 10, 3, device)
    right = anchors.anchor_indices(grad, mask, 0.5, 0.9, 8)
    assert torch.equal(anchors.anchor_indices(grad, mask, 0.5, 0.9, 5), right[:5])
    assert anchors.anchor_indices(grad, mask, 0.5, 0.9, 11).tolist() == [*right.tolist(), 0, 0, 0]


def test_more_sentences_than_a_block_of_counts(device, monkeypatch):
    monkeypatch.setattr(anchors, "RANK_SENTENCES", 4)
    assert_as_specified(*problem([3, 9, 1, 7, 10, 2, 8, 8, 5, 6, 4], 10, 3, device))


def test_two_runs_give_the_same_bits(device):
    grad, mask = problem([90, 50], 90, 40, device)
    first, second = (anchors.anchor_indices(grad, mask, 0.5, 0.9, 56) for _ in range(2))
    assert torch.equal(first, second)


def test_float64(device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    grad, mask = problem([70, 33], 70, 5, device)
    close = grad.double() * 1e-12 + 1  # norms that float32 could not tell apart
    assert_as_specified(close, mask)
