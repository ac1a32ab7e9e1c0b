"""The drop-ins have the values, gradients, state and draws of CLUB's public estimators, restated term by term."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import infobert_fast
from infobert_fast.benchmarks.suites.public_estimators import RESTATED, gaussian
from infobert_fast.dropin import mi_estimators

F64 = torch.float64


CRITICS = ("MINE", "NWJ", "InfoNCE")


def build(name, x_dim=5, y_dim=7, hidden=15):
    torch.manual_seed(1)
    return getattr(mi_estimators, name)(x_dim, y_dim, hidden)


def samples(name, rows, dtype=F64):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 5, generator=generator, dtype=dtype).requires_grad_()
    if name == "CLUBForCategorical":
        return x, torch.randint(7, (rows,), generator=generator)
    return x, (torch.randn(rows, 7, generator=generator, dtype=dtype) + x.detach()[:, :1]).requires_grad_()


def value_and_gradients(function, module, x, y):
    torch.manual_seed(3)
    value = function(x, y)
    leaves = [t for t in (x, y, *module.parameters()) if t.requires_grad]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    return [value.detach(), *gradients, torch.rand(1)]  # the last: as much was drawn


def assert_same(got, expected, tolerance):
    for g, e in zip(got, expected, strict=True):
        assert (g - e).abs().max() <= tolerance * max(1, e.abs().max())


@pytest.mark.parametrize("rows", [2, 33])
@pytest.mark.parametrize("name", RESTATED)
def test_values_gradients_and_draws_are_the_public_forms(name, rows):
    module, (x, y) = build(name).double(), samples(name, rows)
    got = value_and_gradients(module, module, x, y)
    expected = value_and_gradients(lambda x, y: RESTATED[name](module, x, y), module, x, y)
    assert_same(got, expected, 1e-10)


@pytest.mark.parametrize("name", RESTATED)
def test_learning_loss_is_the_public_form(name):
    module, (x, y) = build(name).double(), samples(name, 9)

    def restated(x, y):
        if name in CRITICS:
            return -RESTATED[name](module, x, y)
        if name == "CLUBForCategorical":
            return F.cross_entropy(module.variational_net(x), y)
        if name == "CLUBMean":
            return (module.p_mu(x) - y).square().sum(1).mean()
        mu, logvar = gaussian(module, x)
        return ((mu - y).square() / logvar.exp() + logvar).sum(1).mean()

    got = value_and_gradients(module.learning_loss, module, x, y)
    assert_same(got, value_and_gradients(restated, module, x, y), 1e-10)
    if name not in CRITICS:
        assert torch.equal(module.loglikeli(x, y), -module.learning_loss(x, y))


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        *((name, {"p_mu": "LRL", "p_logvar": "LRLT"}) for name in ("CLUB", "CLUBSample", "L1OutUB", "VarUB")),
        ("CLUBMean", {"p_mu": "LRL"}),
        ("CLUBForCategorical", {"variational_net": "LRL"}),
        ("MINE", {"T_func": "LRL"}),
        ("NWJ", {"F_func": "LRL"}),
        ("InfoNCE", {"F_func": "LRLS"}),
    ],
)
def test_state_is_the_public_one(name, networks):
    module = build(name)
    stacks = dict(module.named_children())
    layers = {name: "".join(type(layer).__name__[0] for layer in stack) for name, stack in stacks.items()}
    assert layers == networks
    widths = {"CLUBMean": (15, 5), "CLUBForCategorical": (15, 5)}.get(name, (15, 12) if name in CRITICS else (7, 5))
    first = next(module.parameters())
    assert tuple(first.shape) == widths
    torch.manual_seed(1)
    assert torch.equal(first, nn.Linear(widths[1], widths[0]).weight)  # a seed gives the public weights
    parameters = [f"{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert list(module.state_dict()) == [f"{network}.{parameter}" for network in networks for parameter in parameters]
    if name in ("CLUBMean", "CLUBForCategorical"):
        (network,) = networks
        assert list(getattr(mi_estimators, name)(5, 7).state_dict()) == [f"{network}.weight", f"{network}.bias"]


def test_mu_and_logvar():
    x, _ = samples("CLUB", 4)
    for name in ("CLUB", "CLUBSample", "L1OutUB", "VarUB"):
        module = build(name).double()
        assert all(torch.equal(a, b) for a, b in zip(module.get_mu_logvar(x), gaussian(module, x), strict=True))
    mu, logvar = build("CLUBMean").double().get_mu_logvar(x)
    assert mu.shape == (4, 7)
    assert logvar == 0


def correlated(information, generator, rows=64, width=20):
    """Of so many nats in all: each dimension of y has correlation rho with x's."""
    rho = math.sqrt(1 - math.exp(-2 * information / width))
    x, noise = torch.randn(2, rows, width, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("name", ["NWJ", "MINE", "InfoNCE", "L1OutUB", "CLUB", "CLUBSample"])
def test_a_training_script_follows_the_public_curve(name, dtype, tolerance):
    """Adam at 5e-3, batches of 64, hidden 15, 100 steps over 2 to 10 nats.

    In float32 some seeds part by 3e-4: a hidden unit that a pair puts within a rounding of 0 counts in one form alone.
    """
    torch.manual_seed(2)
    ours = getattr(mi_estimators, name)(20, 20, 15).to(dtype)
    public = copy.deepcopy(ours)
    curves = []
    for module, estimate in ((ours, ours), (public, lambda x, y: RESTATED[name](public, x, y))):
        torch.manual_seed(5)
        generator, curve = torch.Generator().manual_seed(7), []
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        for step in range(100):
            x, y = (t.to(dtype) for t in correlated(2 + 2 * (step // 20), generator))
            with torch.no_grad():
                curve.append(estimate(x, y))
            if name in CRITICS:
                loss = -estimate(x, y)
            else:
                mu, logvar = gaussian(module, x)
                restated = ((mu - y).square() / logvar.exp() + logvar).sum(1).mean()
                loss = ours.learning_loss(x, y) if module is ours else restated
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curves.append(torch.stack(curve))
    assert (curves[0] - curves[1]).abs().max() < tolerance
    assert curves[0][-1] > curves[0][0]
    if name in ("NWJ", "InfoNCE"):
        assert curves[0].max() < math.log(64)


def test_what_the_pages_say_of_the_two_names_that_differ():
    """L1OutUB there is CLUB to 1e-9; VarUB there is the bound over y's dimensions."""
    x, y = samples("CLUB", 33)
    club, l1out, var_ub = (build(name).double() for name in ("CLUB", "L1OutUB", "VarUB"))
    assert 0 < club(x, y) - l1out(x, y) < 1e-9
    right = infobert_fast.VarUB(5, 7, 15).double()
    right.load_state_dict(var_ub.state_dict())
    torch.testing.assert_close(7 * var_ub(x, y), right(x, y))


def test_categorical_never_forms_all_pairs():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    module, (x, y) = build("CLUBForCategorical").double(), samples("CLUBForCategorical", 200)
    with Watch():
        module(x, y).backward()
    assert max(sizes) == 200 * 15  # the hidden layer


@pytest.mark.parametrize("name", RESTATED)
def test_refuses_by_name(name):
    module, (x, y) = build(name), samples(name, 3, torch.float32)
    first = "inputs" if name == "CLUBForCategorical" else "x_samples"
    with pytest.raises(ValueError, match=f"`{first}` is 4 wide; it must be 5 wide"):
        module(x[:, :4], y)
    with pytest.raises(TypeError, match=f"`{first}` was a ndarray"):
        module(x.detach().numpy(), y)
    with pytest.raises(ValueError, match="hold"):
        module(x, y[:2])
    for arguments, message in (
        ((0, 7, 15), "`.*` was 0"),
        ((5, 0, 15), "`.*` was 0"),
        ((5, 7, 0), "`hidden_.*` was 0"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(mi_estimators, name)(*arguments)


def test_labels_are_refused_by_name():
    module, (x, y) = build("CLUBForCategorical"), samples("CLUBForCategorical", 3, torch.float32)
    with pytest.raises(TypeError, match=r"`labels` was torch\.float32"):
        module(x, y.float())
    with pytest.raises(IndexError, match="`labels` holds values from 0 to 7"):
        module(x, torch.tensor([0, 3, 7]))
