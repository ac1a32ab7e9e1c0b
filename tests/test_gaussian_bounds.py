"""Each estimator on a Gaussian whose mutual information is known in closed form: on which side of it does it lie?"""

from __future__ import annotations

import math

import pytest
import torch

from infobert_fast import CLUB, MINE, NWJ, SMILE, CLUBv2, InfoNCE, L1OutUB, VarUB

WIDTH, RHO = 4, math.sqrt(0.5)
TRUTH = -WIDTH / 2 * math.log(1 - RHO**2)  # 1.386 nats


def samples(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ N(0, 1), y = rho x + sqrt(1 - rho^2) e: each dimension of y is N(0, 1) too."""
    x, noise = torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return x, RHO * x + math.sqrt(1 - RHO**2) * noise


@pytest.mark.parametrize("estimator", [InfoNCE, NWJ, MINE, SMILE])
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


# --- a scalar with little noise: 3.1 nats, where q's published log-variance of at least -1 is far from the truth's -6.2

LITTLE = math.exp(-6.2)  # the variance of the noise


def scalars(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, noise = torch.randn(2, rows, 1, generator=torch.Generator().manual_seed(seed))
    return x, math.sqrt(1 - LITTLE) * x + math.sqrt(LITTLE) * noise


def fitted(bound):
    """After 600 steps of Adam on fresh samples, its mean over eight fresh batches of 512."""
    optimizer = torch.optim.Adam(bound.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=600)
    for step in range(600):
        optimizer.zero_grad()
        bound.learning_loss(*scalars(256, seed=step)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.stack([bound(*scalars(512, seed=10_000 + n)) for n in range(8)]).mean()


@pytest.mark.parametrize("estimator", [L1OutUB, VarUB])
def test_a_wide_range_of_variances_reaches_the_truth_and_the_published_one_cannot(estimator):
    torch.manual_seed(0)
    assert -0.1 < fitted(estimator(1, 1, 32, logvar_range=(-10.0, 10.0))) - 3.1 < 0.25
    assert fitted(estimator(1, 1, 32)) < 1.2


def test_clubs_defaults_are_no_bound_there_and_its_options_make_it_one():
    torch.manual_seed(0)
    assert fitted(CLUB(1, 1)) < 3.1
    assert fitted(CLUB(1, 1, hidden_size=32, logvar_range=(-10.0, 10.0))) > 3.1


def test_club_v2_knows_nothing_of_x():
    """It is the trace of y's covariance: y's own scale decides it, and the dependence on x nothing."""
    x, y = samples(4096, seed=0)
    values = [CLUBv2(WIDTH, WIDTH)(other, y) for other in (x, y, torch.randn(4096, WIDTH), None)]
    assert all(torch.equal(value, values[0]) for value in values)
    torch.testing.assert_close(values[0], torch.cov(y.t(), correction=0).trace())
    torch.testing.assert_close(CLUBv2(WIDTH, WIDTH)(x, 3 * y), 9 * values[0])


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
        SMILE: ("T_func", [(16, 10), (16,), (1, 16), (1,)]),
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
    for estimator in (NWJ, MINE, SMILE, L1OutUB, VarUB):
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
    for given, message in (
        ((1.0, -1.0), r"`logvar_range` was \(1.0, -1.0\)"),
        ((-math.inf, 1), r"`logvar_range\[0\]` was -inf"),
    ):
        with pytest.raises(ValueError, match=message):
            L1OutUB(6, 4, 16, logvar_range=given)


LEARNED = {"CLUB": lambda: CLUB(6, 4), "L1OutUB": lambda: L1OutUB(6, 4, 16), "VarUB": lambda: VarUB(6, 4, 16)}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_bounds_name_what_is_wrong_with_their_samples(name):
    x, y = torch.zeros(3, 6), torch.zeros(3, 4)
    cases = [
        (x.numpy(), y, "`x_samples` was a ndarray; it must be a torch.Tensor: call `torch.from_numpy`"),
        (x, y.numpy(), "`y_samples` was a ndarray"),
        (x, y[:, 0], r"`y_samples` has shape \[3\]; .*`\.unsqueeze\(1\)`"),
        (x[:, 0], y, r"`x_samples` has shape \[3\]; .*`\.unsqueeze\(1\)`"),
        (x.double(), y.double(), r"`x_samples` has dtype torch.float64 and the estimator's weights torch.float32"),
        (x.half(), y.half(), r"`x_samples` has dtype torch.float16 and .*`\.to\(torch.float32\)` on the samples"),
        (x.double(), y, "they must agree"),
    ]
    for first, second, message in cases:
        bound = LEARNED[name]()
        doors = [bound, bound.loglikeli, bound.learning_loss]
        doors += [bound.update, bound.fit_step, bound.mi_est_sample] if name == "CLUB" else []
        for door in doors:
            with pytest.raises((TypeError, ValueError), match=message):
                door(first, second)
    assert LEARNED[name]().double()(x.double(), y.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert LEARNED[name]()(x.bfloat16(), y).dtype == torch.float32
        with pytest.raises(TypeError, match=r"`x_samples` has dtype torch\.float64"):
            LEARNED[name]()(x.double(), y.double())
