"""The adversary of a step against the specification: its start, its ascent, its refusals."""

import dataclasses
import math

import pytest
import torch

from infobert_fast import reference
from infobert_fast.adversary import FreeLB


@pytest.fixture
def mask():
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


@pytest.fixture
def embeddings():
    return torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_the_start_has_its_magnitude_and_spares_padding(embeddings, mask, norm_type):
    ids = torch.tensor([7, 2**35, 0])
    delta = FreeLB(adv_init_mag=0.3, norm_type=norm_type).start(embeddings, mask, seed=5, sentence_ids=ids)
    expected = reference.freelb_init(embeddings, mask, 0.3, norm_type, seed=5, sentence_ids=ids)
    torch.testing.assert_close(delta, expected, atol=1e-12, rtol=0)
    assert not delta[mask == 0].any()
    assert delta[mask == 1].all()
    if norm_type == "l2":  # each sentence starts within the ball of radius mag, however long it is
        norms = delta.flatten(1).norm(dim=1)
        assert (norms <= 0.3).all()
        assert (norms > 0.05).all()


def test_the_start_is_a_function_of_its_seed(embeddings, mask):
    adversary = FreeLB(adv_init_mag=0.3)
    state = torch.get_rng_state()
    first, again, other = (adversary.start(embeddings, mask, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)  # dropout's draws are not shifted


@pytest.mark.parametrize("adv_max_norm", [0.0, 0.2])
@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_ascents_are_the_specifications(embeddings, mask, norm_type, adv_max_norm):
    adversary = FreeLB(0.15, 0.3, adv_max_norm, 3, norm_type)
    delta = expected = adversary.start(embeddings, mask, seed=5)
    for k in range(3):
        grad = torch.randn(embeddings.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        delta = adversary.ascend(delta, grad, mask)
        expected = reference.freelb_step(expected, grad, mask, 0.15, adv_max_norm, norm_type)
        torch.testing.assert_close(delta, expected, atol=1e-12, rtol=0)
        assert not delta[mask == 0].any()
    size = delta.flatten(1).norm(dim=1) if norm_type == "l2" else delta.flatten(1).abs().amax(1)
    if adv_max_norm:
        assert (size <= adv_max_norm + 1e-12).all()
    else:
        assert (size > 0.2).any()  # the bound above means something


def test_an_ascent_climbs(embeddings, mask):
    """By the length of an ascent times the gradient's norm, for a linear loss."""
    weights = torch.randn(embeddings.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    weights = weights * mask.unsqueeze(-1)
    delta = torch.zeros_like(embeddings)
    gain = ((FreeLB(adv_lr=0.5).ascend(delta, weights, mask) - delta) * weights).sum((1, 2))
    torch.testing.assert_close(gain, 0.5 * weights.flatten(1).norm(dim=1))


@pytest.mark.parametrize(
    ("settings", "perturbs"),
    [
        ({}, False),
        ({"adv_lr": 0.1}, False),  # one pass has no ascent
        ({"adv_init_mag": 0.1}, True),
        ({"adv_steps": 2}, True),
    ],
    ids=str,
)
def test_whether_it_perturbs(settings, perturbs):
    assert FreeLB(**settings).perturbs is perturbs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adv_lr": -0.1}, "`adv_lr` was -0.1; it must be a finite number >= 0.0"),
        ({"adv_init_mag": -0.1}, "`adv_init_mag` was -0.1"),
        ({"adv_init_mag": math.nan}, "`adv_init_mag` was nan"),
        ({"adv_max_norm": -0.1}, "`adv_max_norm` was -0.1; .*0 means no projection"),
        ({"adv_steps": 0}, "`adv_steps` was 0; it must be an integer of at least 1"),
        ({"adv_steps": 2.0}, "`adv_steps` was 2.0"),
        ({"norm_type": "L2"}, "`norm_type` was 'L2'; it must be one of 'l2', 'linf'"),
    ],
    ids=str,
)
def test_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        FreeLB(**settings)


def test_it_cannot_be_changed_within_a_step():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FreeLB().adv_steps = 3
