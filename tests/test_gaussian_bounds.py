"""Each estimator on a Gaussian whose mutual information is known in closed form: on which side of it does it lie?"""

from __future__ import annotations

import math

import pytest
import torch

from infobert_fast import MINE, NWJ, InfoNCE, L1OutUB, VarUB

WIDTH, RHO = 4, math.sqrt(0.5)
TRUTH = -WIDTH / 2 * math.log(1 - RHO**2)  # 1.386 nats


def samples(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ N(0, 1), y = rho x + sqrt(1 - rho^2) e: each dimension of y is N(0, 1) too."""
    x, noise = torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return x, RHO * x + math.sqrt(1 - RHO**2) * noise


@pytest.mark.parametrize("estimator", [InfoNCE, NWJ, MINE])
def test_lower_bounds_lie_below_and_come_near(estimator):
    torch.manual_seed(0)
    critic = estimator(WIDTH, WIDTH, 64)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for step in range(250):
        optimizer.zero_grad()
        critic.learning_loss(*samples(128, seed=step)).backward()
        optimizer.step()
    with torch.no_grad():
        fresh = torch.stack([critic(*samples(512, seed=10_000 + n)) for n in range(8)])
    error = fresh.std() / math.sqrt(8)
    assert 0.6 * TRUTH < fresh.mean() < TRUTH + 3 * error


def set_to_truth(bound) -> None:
    """q(y | x) = N(rho x, 1 - rho^2): p_mu through relu(x) - relu(-x), p_logvar by its last bias."""
    eye, zero = torch.eye(WIDTH), torch.zeros(WIDTH)
    with torch.no_grad():
        first, _, last = bound.p_mu
        first.weight.copy_(torch.cat([eye, -eye]))
        last.weight.copy_(torch.cat([RHO * eye, -RHO * eye], dim=1))
        first.bias.zero_()
        last.bias.copy_(zero)
        bound.p_logvar[2].weight.zero_()
        bound.p_logvar[2].bias.fill_(math.atanh(math.log(1 - RHO**2)))


def at_the_truth(estimator, rows: int, repeats: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over samples of the bound with the true conditional, and the mean's standard error."""
    bound = estimator(WIDTH, WIDTH, 4 * WIDTH)
    set_to_truth(bound)
    with torch.no_grad():
        values = torch.stack([bound(*samples(rows, seed=n)) for n in range(repeats)])
    return values.mean(), values.std() / math.sqrt(repeats)


def test_variational_bound_is_the_truth_where_both_its_densities_are():
    mean, error = at_the_truth(VarUB, rows=256, repeats=20)
    assert abs(mean - TRUTH) < 3 * error < 0.1


def test_leave_one_out_lies_above_and_comes_near():
    """Strictly above where the mixture of 7 is no marginal; within a tenth of a nat where it is one of 511."""
    mean, error = at_the_truth(L1OutUB, rows=8, repeats=400)
    assert mean > TRUTH + 3 * error
    mean, error = at_the_truth(L1OutUB, rows=512, repeats=20)
    assert TRUTH - 3 * error < mean < TRUTH + 0.1


@pytest.mark.parametrize("estimator", [L1OutUB, VarUB])
def test_the_conditional_is_fitted_by_its_likelihood(estimator):
    torch.manual_seed(0)
    bound = estimator(WIDTH, WIDTH, 64)
    optimizer = torch.optim.Adam(bound.parameters(), lr=1e-2)
    x, y = samples(512, seed=0)
    before = bound.loglikeli(x, y)
    for _ in range(150):
        optimizer.zero_grad()
        bound.learning_loss(x, y).backward()
        optimizer.step()
    truth = estimator(WIDTH, WIDTH, 4 * WIDTH)
    set_to_truth(truth)
    fresh = samples(2048, seed=1)
    assert bound.loglikeli(*fresh) > before + 1
    assert abs(bound.loglikeli(*fresh) - truth.loglikeli(*fresh)) < 1


def test_names_of_public_code():
    names = {
        NWJ: ("F_func", [(16, 10), (16,), (1, 16), (1,)]),
        MINE: ("T_func", [(16, 10), (16,), (1, 16), (1,)]),
    }
    for estimator, (network, shapes) in names.items():
        state = estimator(6, 4, 16).state_dict()
        assert [tuple(t.shape) for t in state.values()] == shapes
        assert list(state) == [f"{network}.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    for estimator in (L1OutUB, VarUB):
        bound = estimator(6, 4, 16)
        layers = {name: [type(layer).__name__ for layer in getattr(bound, name)] for name in ("p_mu", "p_logvar")}
        assert layers == {"p_mu": ["Linear", "ReLU", "Linear"], "p_logvar": ["Linear", "ReLU", "Linear", "Tanh"]}
        assert [tuple(p.shape) for p in bound.p_mu.parameters()] == [(8, 6), (8,), (4, 8), (4,)]


def test_refuses():
    for estimator in (NWJ, MINE, L1OutUB, VarUB):
        for arguments, message in (
            ((0, 4, 16), "`x_dim` was 0"),
            ((6, 0, 16), "`y_dim` was 0"),
            ((6, 4, 0), "`hidden_size` was 0"),
        ):
            with pytest.raises(ValueError, match=message):
                estimator(*arguments)
        with pytest.raises(ValueError, match="`x_samples` is 5 wide; it must be 6 wide"):
            estimator(6, 4, 16)(torch.zeros(3, 5), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="`hidden_size` was 1"):
        VarUB(6, 4, 1)
    with pytest.raises(ValueError, match="`implementation` was 'cuda'"):
        NWJ(6, 4, 16, implementation="cuda")
