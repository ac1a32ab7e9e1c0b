"""SeparableInfoNCE as a module: its parameters, its losses, and on which side of a known information it lies."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F

from infobert_fast import SeparableInfoNCE, functional, reference


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameters():
    assert dict(SeparableInfoNCE("dot").named_parameters()) == {}
    clip = SeparableInfoNCE("cosine", learn_temperature=True, symmetric=True)
    assert list(clip.state_dict()) == ["logit_scale"]
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    bilinear = SeparableInfoNCE("bilinear", x_dim=7, y_dim=5)
    assert {name: tuple(t.shape) for name, t in bilinear.state_dict().items()} == {"weight": (7, 5)}
    for module in (clip, bilinear):
        file = io.BytesIO()
        torch.save(copy.deepcopy(module), file)
        file.seek(0)
        assert str(torch.load(file, weights_only=False)) == str(module)
    assert str(clip) == "SeparableInfoNCE('cosine', learn_temperature=True, symmetric=True, implementation='auto')"
    assert "temperature=0.05, over='global_'" in str(SeparableInfoNCE("cosine", temperature=0.05))


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (SeparableInfoNCE("dot"), {"scale": 1.0}),
        (SeparableInfoNCE("dot", over="local"), {"scale": 1.0}),
        (SeparableInfoNCE("cosine"), {"scale": 1 / 0.07}),
        (SeparableInfoNCE("cosine", temperature=0.5, learn_temperature=True, symmetric=True), {"scale": 2.0}),
    ],
)
def test_it_is_the_function(module, options):
    x, y, pair_index = normal(9, 7), normal(3, 7, seed=1), torch.arange(9) // 3
    options |= {"critic": module.critic, "symmetric": module.symmetric, "over": module.over, "pair_index": pair_index}
    expected = reference.separable_info_nce(x, y, **options)
    torch.testing.assert_close(module.double()(x, y, pair_index=pair_index).detach(), expected, rtol=1e-6, atol=1e-9)
    labels = torch.arange(9) % 4
    expected = reference.separable_info_nce(x, y, labels=labels, **options)
    got = module(x, y, pair_index=pair_index, labels=labels).detach()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def cross_entropy(x, y, scale):
    """SimCSE's: each row of x picks its own among those of y."""
    scores = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).t()
    return F.cross_entropy(scores, torch.arange(len(x)))


def test_the_default_direction_is_simcse():
    x, y = normal(16, 8), normal(16, 8, seed=1)
    forwards, backwards = cross_entropy(x, y, 20), cross_entropy(y, x, 20)
    assert abs(forwards - backwards) > 0.01
    for options, expected in (
        ({}, forwards),
        ({"over": "local"}, backwards),
        ({"symmetric": True}, (forwards + backwards) / 2),
    ):
        critic = SeparableInfoNCE("cosine", temperature=0.05, **options)
        assert abs(critic.learning_loss(x, y) - expected) < 1e-12
        assert abs(math.log(16) - critic(x, y) - expected) < 1e-12


@pytest.mark.parametrize("over", ["global_", "local"])
def test_shared_rows_of_either_side(over):
    """Rows that pairs share count once for each pair, on the side that is summed over and on the fixed one."""
    x, y = normal(3, 7), normal(4, 7, seed=1)
    which = {"local_index": torch.arange(9) % 3, "pair_index": torch.arange(9) % 4}
    got = SeparableInfoNCE("dot", over=over)(x, y, **which)
    whole = SeparableInfoNCE("dot", over=over)(x[which["local_index"]], y[which["pair_index"]])
    assert abs(got - whole) < 1e-12


def test_the_learning_loss_with_labels_is_a_cross_entropy():
    """A pair whose label three others share has 6 terms of 9, whatever log 9 says."""
    x, y, labels = normal(9, 7), normal(9, 7, seed=1), torch.tensor([0] * 4 + [1, 2, 3, 4, 4])
    scores = x @ y.t()
    left_out = (labels.unsqueeze(1) == labels) & ~torch.eye(9, dtype=torch.bool)
    expected = F.cross_entropy(scores.masked_fill(left_out, -math.inf), torch.arange(9))
    assert abs(SeparableInfoNCE("dot").learning_loss(x, y, labels=labels) - expected) < 1e-12


def test_every_parameter_and_both_encoders_are_trained():
    for module in (
        SeparableInfoNCE("cosine", learn_temperature=True),
        SeparableInfoNCE("bilinear", x_dim=7, y_dim=7, learn_temperature=True),
    ):
        x, y = (normal(9, 7, seed=n).float().requires_grad_() for n in range(2))
        module(x, y).backward()
        for tensor in (x, y, *module.parameters()):
            assert tensor.grad.abs().max() > 0


def test_a_trained_bilinear_critic_lies_below_the_truth():
    """x, y normal with correlation 0.9 in each of 3 dimensions: 2.49 nats, of which a bilinear critic finds a part."""
    truth = -3 / 2 * math.log(1 - 0.9**2)

    def samples(rows, seed):
        x, noise = torch.randn(2, rows, 3, generator=torch.Generator().manual_seed(seed))
        return x, 0.9 * x + math.sqrt(1 - 0.9**2) * noise

    torch.manual_seed(0)
    critic = SeparableInfoNCE("bilinear", x_dim=3, y_dim=3, symmetric=True)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)
    for step in range(100):
        optimizer.zero_grad()
        (-critic(*samples(128, step))).backward()
        optimizer.step()
    with torch.no_grad():
        fresh = torch.stack([critic(*samples(512, 1000 + n)) for n in range(8)])
    assert 0.4 * truth < fresh.mean() < truth
    assert torch.linalg.cond(critic.weight.detach()) < 2, "a multiple of a rotation, here of the identity"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"critic": "mlp"}, r"`critic` was 'mlp'; it must be one of 'dot', 'cosine', 'bilinear'"),
        ({"temperature": 0.0}, r"`temperature` was 0.0"),
        ({"critic": "bilinear", "y_dim": 3}, r"`x_dim` was None; it must be an integer of at least 1; the bilinear"),
        ({"critic": "bilinear", "x_dim": 3}, r"`y_dim` was None"),
        ({"over": "global"}, r"`over` was 'global'; it must be one of 'global_', 'local'"),
        ({"implementation": "cuda"}, r"`implementation` was 'cuda'"),
    ],
)
def test_cannot_be_built_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeparableInfoNCE(**arguments)


def test_public_names():
    assert functional.SEPARABLE_CRITICS == ("dot", "cosine", "bilinear")
