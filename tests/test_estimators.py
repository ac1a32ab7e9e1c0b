"""The modules: names, state, and that CLUB's two objectives never leak into each other."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

import infobert_fast
from infobert_fast import CLUB, MINE, NWJ, CLUBv2, InfoNCE, L1OutUB, VarUB, functional, reference


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- InfoNCE ------------------------------------------------------------------------------------------------------


def test_info_nce_state_has_the_names_and_shapes_of_published_checkpoints():
    state = InfoNCE(6, 4).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "F_func.0.weight": (300, 10),
        "F_func.0.bias": (300,),
        "F_func.2.weight": (1, 300),
        "F_func.2.bias": (1,),
    }


def test_info_nce_takes_its_parameters_from_a_checkpoint():
    """Any other order of W1's columns than [x, y] would show."""
    state = {
        "F_func.0.weight": normal(8, 10, seed=1),
        "F_func.0.bias": normal(8, seed=2),
        "F_func.2.weight": normal(1, 8, seed=3),
        "F_func.2.bias": normal(1, seed=4),
    }
    critic = InfoNCE(6, 4, hidden_dim=8).double()
    critic.load_state_dict(state)
    x, y, pair_index = normal(9, 6, seed=5), normal(3, 4, seed=6), torch.arange(9) // 3
    for options in ({}, {"chunk_size": 4}, {"local_index": torch.arange(9).flip(0)}):
        expected = reference.info_nce(x, y, *state.values(), pair_index=pair_index, **options)
        torch.testing.assert_close(
            critic(x, y, pair_index=pair_index, **options).detach(), expected, rtol=1e-11, atol=0
        )


def test_info_nce_trains_itself_and_both_encoders():
    critic, x, y = InfoNCE(6, 4), normal(9, 6).float().requires_grad_(), normal(9, 4).float().requires_grad_()
    critic(x, y).backward()
    for tensor in (x, y, *critic.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0


def test_ascending_the_bound_finds_dependence_and_stays_below_log_n():
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    critic = InfoNCE(4, 4, hidden_dim=64)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        bound = critic(x, x)
        (-bound).backward()
        optimizer.step()
    assert 1.0 < bound <= math.log(64)


def test_info_nce_passes_implementation_on(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, y = normal(5, 6), normal(5, 4)
    critic = InfoNCE(6, 4, implementation="reference").double()
    parameters = [parameter.detach() for parameter in critic.parameters()]
    assert torch.equal(critic(x, y).detach(), reference.info_nce(x, y, *parameters))
    with pytest.raises(ValueError, match="`implementation` was 'triton'"):
        InfoNCE(6, 4, implementation="triton").double()(x, y)
    assert "implementation='reference'" in repr(critic)


def test_info_nce_in_bfloat16_and_under_autocast():
    x, y = normal(9, 6).float(), normal(9, 4).float()
    critic = InfoNCE(6, 4)
    exact = critic(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(critic(x, y.bfloat16()), exact, rtol=0, atol=0.02)
    torch.testing.assert_close(copy.deepcopy(critic).bfloat16()(x.bfloat16(), y.bfloat16()), exact, rtol=0, atol=0.02)


def test_modules_are_copied_and_pickled():
    """A copy has the same values in weights of its own, and CLUB's Adam moves those and no others."""
    x, y = normal(9, 6).float(), normal(9, 4).float()
    others = (estimator(6, 4, 8) for estimator in (NWJ, MINE, L1OutUB, VarUB))
    for module in (InfoNCE(6, 4), CLUB(6, 4), CLUBv2(6, 4), *others):
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        before, value = copy.deepcopy(module.state_dict()), module(x, y)
        for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
            assert type(twin) is type(module)
            assert repr(twin) == repr(module)
            assert torch.equal(twin(x, y), value)
            if isinstance(module, CLUB):
                twin.update(x, y)
            else:
                for parameter in twin.parameters():
                    parameter.data += 1
            assert all(not torch.equal(twin.state_dict()[name], tensor) for name, tensor in before.items())
            assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), ValueError, r"`x_samples` is 5 wide; it must be 6 wide"),
        (torch.zeros(3, 6), torch.zeros(3, 5), ValueError, r"`y_samples` is 5 wide; it must be 4 wide"),
        (torch.zeros(3, 6), torch.zeros(2, 4), ValueError, r"gives 3 pairs and .* 2; the counts must agree"),
        (torch.zeros(0, 6), torch.zeros(0, 4), ValueError, r"`x_samples` holds zero rows"),
        (torch.zeros(3, 1, 6), torch.zeros(3, 4), ValueError, r"`x_samples` has shape \[3, 1, 6\]"),
        (torch.zeros(3, 6, device="meta"), torch.zeros(3, 4), ValueError, r"on cpu and .* on meta"),
        (torch.zeros(3, 6), torch.zeros(3, 4, device="meta"), ValueError, r"on meta and .* on cpu"),
        (torch.zeros(3, 6).double(), torch.zeros(3, 4), TypeError, r"float32 and .*float64; they must agree"),
        (torch.zeros(3, 6).double(), torch.zeros(3, 4).double(), TypeError, r"`w1` has dtype torch.float32"),
        (torch.zeros(3, 6).long(), torch.zeros(3, 4), TypeError, r"`x_samples` has dtype torch.int64"),
        ([[0.0] * 6], torch.zeros(1, 4), TypeError, r"`x_samples` was a list; it must be a torch.Tensor"),
    ],
)
def test_info_nce_refuses(x, y, error, message):
    with pytest.raises(error, match=message):
        InfoNCE(6, 4)(x, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x_dim": 0}, r"`x_dim` was 0; it must be an integer of at least 1"),
        ({"y_dim": 4.0}, r"`y_dim` was 4.0"),
        ({"hidden_dim": -1}, r"`hidden_dim` was -1"),
        ({"implementation": "cuda"}, r"`implementation` was 'cuda'"),
        ({"precision": "half"}, r"`precision` was 'half'"),
    ],
)
def test_info_nce_cannot_be_built_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        InfoNCE(**({"x_dim": 6, "y_dim": 4} | arguments))


# --- CLUBv2 -------------------------------------------------------------------------------------------------------


def test_club_v2_is_the_parameter_free_bound():
    upper, y = CLUBv2(6, 4), normal(20, 4)
    assert list(upper.parameters()) == []
    torch.testing.assert_close(upper.mi_est(None, y), reference.club(y))
    torch.manual_seed(3)
    sampled = upper.mi_est_sample(normal(20, 6), y)
    torch.manual_seed(3)
    torch.testing.assert_close(sampled, reference.club_sampled(y, torch.randint(20, (20,))))


def test_club_v2_update_weighs_by_beta_and_ignores_steps():
    upper, y = CLUBv2(6, 4), normal(20, 4).requires_grad_()
    assert (upper.version, upper.beta) == (2, 0)
    assert upper.update(None, y) == 0
    upper.version, upper.beta = 3, 0.5
    values = []
    for steps in (None, 1, 7):
        torch.manual_seed(3)
        values.append(upper.update(normal(20, 6), y, steps))
    torch.manual_seed(3)
    assert all(torch.equal(value, 0.5 * upper.mi_est_sample(None, y)) for value in values[:1])
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    values[0].backward()
    assert y.grad.abs().max() > 0


def test_club_v2_refuses():
    with pytest.raises(ValueError, match=r"`y_samples` is 5 wide; it must be 4 wide"):
        CLUBv2(6, 4).update(None, torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"`y_samples` holds zero rows"):
        CLUBv2(6, 4).mi_est(None, torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"`y_dim` was 0"):
        CLUBv2(6, 0)


# --- CLUB ---------------------------------------------------------------------------------------------------------


def club_problem(rows: int = 40):
    """y depends on x; q in float64."""
    torch.manual_seed(0)
    x = normal(rows, 6, seed=1)
    return (
        CLUB(6, 4, beta=0.5).double(),
        x.requires_grad_(),
        (x.detach()[:, :4] + 0.1 * normal(rows, 4)).requires_grad_(),
    )


def test_club_has_the_published_networks_and_its_own_adam():
    upper = CLUB(6, 4, lr=3e-3)
    layers = {name: [type(layer).__name__ for layer in getattr(upper, name)] for name in ("p_mu", "p_logvar")}
    assert layers == {"p_mu": ["Linear", "ReLU", "Linear"], "p_logvar": ["Linear", "ReLU", "Linear", "Tanh"]}
    assert [tuple(p.shape) for p in upper.p_mu.parameters()] == [(4, 6), (4,), (4, 4), (4,)]
    assert type(upper.optimizer) is torch.optim.Adam
    (group,) = upper.optimizer.param_groups
    assert group["lr"] == 3e-3
    assert {id(p) for p in group["params"]} == {id(p) for p in upper.parameters()}
    assert CLUB(6, 4).optimizer.param_groups[0]["lr"] == 1e-3
    assert (upper.version, upper.beta) == (0, 0)


def test_club_estimates_are_the_formulas():
    upper, x, y = club_problem()
    mu, logvar = upper.get_mu_logvar(x)
    assert torch.equal(mu, upper.p_mu(x))
    assert torch.equal(logvar, upper.p_logvar(x))
    torch.testing.assert_close(upper.loglikeli(x, y), reference.gaussian_log_likelihood(mu, logvar, y))
    torch.testing.assert_close(upper.mi_est(x, y), reference.gaussian_club(mu, logvar, y))
    torch.manual_seed(3)
    sampled = upper.mi_est_sample(x, y)
    torch.manual_seed(3)
    index = torch.randint(40, (40,))
    torch.testing.assert_close(sampled, reference.gaussian_club_sampled(mu, logvar, y, index))


def test_club_update_takes_one_adam_step_up_the_likelihood():
    upper, x, y = club_problem()
    twin = copy.deepcopy(upper)
    (-twin.loglikeli(x.detach(), y.detach())).backward()
    torch.optim.Adam(twin.parameters(), lr=1e-3).step()
    upper.update(x, y)
    for got, expected in zip(upper.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_club_update_keeps_the_two_objectives_apart():
    """The samples receive beta times the bound's gradient for the updated q and nothing of the likelihood's; q receives
    nothing of the bound's.
    """
    upper, x, y = club_problem()
    torch.manual_seed(3)
    value = upper.update(x, y)
    assert all(parameter.grad is None for parameter in upper.parameters())
    assert x.grad is None
    assert y.grad is None
    value.backward()
    assert all(parameter.grad is None for parameter in upper.parameters())
    assert all(parameter.requires_grad for parameter in upper.parameters())

    torch.manual_seed(3)
    index = torch.randint(40, (40,))
    with torch.no_grad():
        mu, variance = upper.p_mu(x), upper.p_logvar(x).exp()
        # d/dy of 1/(2 v) [ -(mu_n - y_n)^2 + (mu_n - y_r(n))^2 ]: y_n as itself, and as others' negative.
        expected = (mu - y) / variance
        for n, partner in enumerate(index.tolist()):
            expected[partner] -= (mu[n] - y[partner]) / variance[n]
    torch.testing.assert_close(y.grad, 0.5 * expected / 40)

    leaf = x.detach().requires_grad_()
    bound = reference.gaussian_club_sampled(upper.p_mu(leaf), upper.p_logvar(leaf), y.detach(), index)
    torch.testing.assert_close(x.grad, 0.5 * torch.autograd.grad(bound, leaf)[0])


def test_club_update_reaches_an_encoder_through_the_bound_alone():
    """Twice the beta, twice the gradient: a likelihood term would not scale."""
    grads = []
    for beta in (0.5, 1.0):
        upper, x, y = club_problem()
        upper.beta = beta
        torch.manual_seed(3)
        upper.update(x, y).backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], 2 * grads[0])


def test_club_learns():
    upper, x, y = club_problem(200)
    upper.optimizer.param_groups[0]["lr"] = 1e-2
    before = upper.loglikeli(x, y)
    for _ in range(20):
        upper.update(x, y, steps=5)
    assert upper.loglikeli(x, y) > before + 1
    assert upper.mi_est(x, y) > 1  # y nearly copies x
    assert abs(upper.mi_est(x, y[torch.randperm(200, generator=torch.Generator().manual_seed(0))])) < upper.mi_est(x, y)


def test_club_update_counts_its_steps():
    upper, x, y = club_problem()
    for steps, taken in ((None, 1), (1, 2), (3, 5)):
        upper.update(x, y, steps)
        assert {int(state["step"]) for state in upper.optimizer.state.values()} == {taken}
    with pytest.raises(ValueError, match=r"`steps` was 0"):
        upper.update(x, y, 0)


@pytest.mark.parametrize("module", [CLUB, CLUBv2])
def test_partners_come_from_the_generator(module):
    """And from it alone: the default generator stands where it stood."""
    upper, x, y = module(6, 4).double(), normal(20, 6, seed=1), normal(20, 4, seed=2)
    state = torch.get_rng_state()
    first, again = (upper.mi_est_sample(x, y, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, upper.mi_est_sample(x, y, generator=torch.Generator().manual_seed(4)))
    upper.beta = 1.0
    values = [copy.deepcopy(upper).update(x, y, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*values)
    assert torch.equal(torch.get_rng_state(), state)


def test_club_version_1_flattens_and_version_0_does_not():
    upper, x, y = club_problem()
    twin = copy.deepcopy(upper)
    shaped = x.detach().reshape(8, 5, 6), y.detach().reshape(8, 5, 4)
    with pytest.raises(ValueError, match=r"shape \[8, 5, 4\]; it must be a matrix"):
        upper.update(*shaped)
    upper.version = 1
    torch.manual_seed(3)
    flattened = upper.update(*shaped)
    torch.manual_seed(3)
    assert torch.equal(flattened, twin.update(x.detach(), y.detach()))


def test_club_learns_without_a_graph_too():
    upper, x, y = club_problem()
    with torch.no_grad():
        assert not upper.update(x, y).requires_grad
    assert int(next(iter(upper.optimizer.state.values()))["step"]) == 1


def test_club_under_autocast_takes_mixed_dtypes_and_estimates_in_float32():
    upper, x, y = club_problem()
    upper, x, y = upper.float(), x.detach().float(), y.detach().bfloat16()
    exact = upper.mi_est(x, y.float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = upper.mi_est(x, y)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    with pytest.raises(TypeError, match=r"call under torch\.autocast"):
        upper.mi_est(x, y)


def test_club_under_autocast_sees_its_own_steps():
    """Autocast keeps a half-precision copy of each weight until it ends; q's steps must not be taken from it."""
    upper, x, y = club_problem()
    upper, x, y = upper.float(), x.detach().float(), y.detach().float()
    upper.optimizer.param_groups[0]["lr"] = 0.1
    twin = copy.deepcopy(upper)
    with torch.autocast("cpu", torch.bfloat16):
        value = upper.update(x.requires_grad_(), y, steps=4)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            twin.fit_step(x, y)
    for got, expected in zip(upper.parameters(), twin.parameters(), strict=True):
        assert torch.equal(got, expected)
    value.backward()
    assert all(parameter.grad is None for parameter in upper.parameters())


def test_club_averages_its_gradient_over_ranks(monkeypatch):
    """Three ranks, the other two with gradients of 0 (nothing is added here): Adam receives a third."""
    reduced = []
    monkeypatch.setattr(torch.distributed, "all_reduce", reduced.append)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    upper, x, y = club_problem()
    twin = copy.deepcopy(upper)
    upper.fit_step(x, y, average=True)
    assert x.grad is None, "a likelihood step never reaches its samples"
    assert len(reduced) == len(list(upper.parameters()))
    twin.fit_step(x, y)
    for got, plain in zip(upper.parameters(), twin.parameters(), strict=True):
        moment, whole = upper.optimizer.state[got]["exp_avg"], twin.optimizer.state[plain]["exp_avg"]
        torch.testing.assert_close(moment, whole / 3)


def test_club_frozen_estimate_may_be_exact():
    upper, x, y = club_problem()
    value = upper.frozen_estimate(x, y, sampled=False)
    torch.testing.assert_close(value, upper.mi_est(x, y))
    value.backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in upper.parameters())
    with pytest.raises(ValueError, match="zero rows"):
        upper.frozen_estimate(x[:0], y[:0])
    assert all(parameter.requires_grad for parameter in upper.parameters())


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, 4), ValueError, r"`x_samples` is 5 wide; it must be 6 wide"),
        (torch.zeros(3, 6), torch.zeros(3, 5), ValueError, r"`y_samples` is 5 wide; it must be 4 wide"),
        (torch.zeros(3, 6), torch.zeros(2, 4), ValueError, r"`x_samples` holds 3 rows and `y_samples` 2"),
        (torch.zeros(0, 6), torch.zeros(0, 4), ValueError, r"`y_samples` holds zero rows"),
        (torch.zeros(3, 6), torch.zeros(3, 4, device="meta"), ValueError, r"`x_samples` is on cpu and `y_samples` on"),
        (torch.zeros(3, 6), torch.zeros(3, 4).double(), TypeError, r"`x_samples` has dtype torch.float32 and `y_sam"),
    ],
)
def test_club_refuses(x, y, error, message):
    upper = CLUB(6, 4)
    for method in (upper.update, upper.mi_est, upper.mi_est_sample, upper.loglikeli):
        with pytest.raises(error, match=message):
            method(x, y)


def test_club_cannot_be_built_wrong():
    for arguments, message in (
        ({"x_dim": 0}, "`x_dim` was 0"),
        ({"y_dim": 0}, "`y_dim` was 0"),
        ({"lr": -1.0}, "`lr` was -1.0"),
        ({"lr": 64}, "`lr` was 64; .*the width of q's networks is `hidden_size`, by name"),
        ({"hidden_size": 1}, "`hidden_size` was 1"),
        ({"logvar_range": (1.0, 1.0)}, "`logvar_range` was"),
    ):
        with pytest.raises(ValueError, match=message):
            CLUB(**({"x_dim": 6, "y_dim": 4} | arguments))
    with pytest.raises(ValueError, match="`hidden_size`"):
        CLUB(6, 4, 64)  # the third argument of CLUB's public code


def test_clubs_width_and_range_are_as_asked():
    upper, x, y = CLUB(6, 4, hidden_size=20, logvar_range=(-6.0, 2.0)).double(), 50 * normal(99, 6), normal(99, 4)
    assert [tuple(p.shape) for p in upper.p_mu.parameters()] == [(10, 6), (10,), (4, 10), (4,)]
    logvar = upper.get_mu_logvar(x)[1]
    torch.testing.assert_close(logvar, 4 * upper.p_logvar(x) - 2)
    assert -6 <= logvar.min() < -4 < 0 < logvar.max() <= 2
    torch.testing.assert_close(upper(x, y), reference.gaussian_club(*upper.get_mu_logvar(x), y))
    assert torch.equal(CLUBv2(6, 4)(None, y), functional.club(y))


# --- a user's script ------------------------------------------------------------------------------------------------

SCRIPT = """
{imports}
import torch

hidden = 16
mi_upper_estimator = CLUBv2(hidden, hidden, beta=5e-3)
mi_upper_estimator.version = 6
mi_lower_estimator = InfoNCE(hidden, hidden)
mi_lower_estimator.load_state_dict({{name: tensor.clone() for name, tensor in checkpoint.items()}})
learned = CLUB(hidden, hidden, beta=1e-2)
learned.version = 1
encoder = torch.nn.Linear(hidden, hidden)
parameters = [*encoder.parameters(), *mi_lower_estimator.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-3)
for step in range(3):
    embeddings = torch.randn(4, 6, hidden)
    outputs = encoder(embeddings)
    local, cls = outputs.reshape(-1, hidden), outputs[:, 0]
    loss = outputs.square().mean()
    loss = loss + mi_upper_estimator.update(embeddings.reshape(-1, hidden), local)
    loss = loss + mi_upper_estimator.update(embeddings, local, steps=step)
    loss = loss + learned.update(embeddings, outputs)
    lower_bounds = [mi_lower_estimator(local[i * 6 : i * 6 + 6], cls[i].expand(6, hidden)) for i in range(4)]
    loss = loss - 5e-3 * torch.stack(lower_bounds).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
upper = mi_upper_estimator.mi_est_sample(None, local).item(), mi_upper_estimator.mi_est(None, local).item()
state = mi_lower_estimator.state_dict()
"""


def test_a_script_written_for_the_published_modules_runs_when_its_import_changes():
    torch.manual_seed(0)
    checkpoint = {
        "F_func.0.weight": torch.randn(300, 32),
        "F_func.0.bias": torch.randn(300),
        "F_func.2.weight": torch.randn(1, 300),
        "F_func.2.bias": torch.randn(1),
    }
    names = {"checkpoint": checkpoint}
    exec(SCRIPT.format(imports="from infobert_fast import CLUB, CLUBv2, InfoNCE"), names)
    assert math.isfinite(names["loss"].item())
    assert all(math.isfinite(value) for value in names["upper"])
    assert list(names["state"]) == list(checkpoint)
    assert not any(torch.equal(names["state"][name], checkpoint[name]) for name in checkpoint)


# --- the package ----------------------------------------------------------------------------------------------------


def test_public_names():
    assert infobert_fast.functional is functional
    assert {"CLUB", "CLUBv2", "InfoNCE", "InfoBertArguments", "InfoBertTrainer"} <= set(infobert_fast.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'InfoMAX'"):
        _ = infobert_fast.InfoMAX
    assert all(hasattr(functional, name) for name in functional.__all__)
