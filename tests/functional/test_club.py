"""CLUB in closed form, sampled and learned: values, gradients, masks, digits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import (
    club,
    club_sampled,
    gaussian_club,
    gaussian_club_sampled,
    gaussian_log_likelihood,
    sample_rows,
)

F64 = torch.float64
MASK_DTYPES = [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.bfloat16]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def value_and_grad(function, *tensors, dtype=F64):
    """The value and the gradient of every tensor."""
    leaves = [tensor.detach().to(dtype).clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(got, expected, tolerance=1e-10):
    for g, e in zip(got, expected, strict=True):
        assert (g.to(F64) - e.to(F64)).abs().max() <= tolerance * e.abs().max() + 1e-15


# --- the parameter-free form --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 257])
@pytest.mark.parametrize("width", [1, 40])
def test_club_equals_the_oracle(rows, width):
    y = normal(rows, width)
    assert_same(value_and_grad(club, y), value_and_grad(reference.club, y))


def test_gradient_is_the_analytic_one():
    y = normal(20, 6)
    _, grad = value_and_grad(club, y)
    assert_same([grad], [2 / 20 * (y - y.mean(0))])
    assert torch.autograd.gradcheck(club, y.requires_grad_())
    assert torch.autograd.gradcheck(lambda t: club(t, torch.tensor([1, 0] * 10)), y)


@pytest.mark.parametrize("mask_dtype", MASK_DTYPES, ids=str)
def test_masks_of_any_dtype(mask_dtype):
    y, mask = normal(4, 9, 5), torch.ones(4, 9, dtype=mask_dtype)
    mask[0, 5:] = mask[1, :3] = mask[3, 1:] = 0
    index = sample_rows(mask, torch.Generator().manual_seed(0))
    for fast, literal in (
        (lambda t: club(t, mask), lambda t: reference.club(t, mask)),
        (lambda t: club_sampled(t, index, mask), lambda t: reference.club_sampled(t, index, mask)),
    ):
        got = value_and_grad(fast, y)
        assert_same(got, value_and_grad(literal, y))
        assert (got[1][mask == 0] == 0).all()
    assert_same(value_and_grad(lambda t: club(t, mask), y)[:1], [reference.club(y[mask.bool()])])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_masked_rows_may_hold_anything(poison, dtype):
    y, mask = normal(6, 4).to(dtype), torch.tensor([1, 0, 1, 1, 0, 1])
    index = torch.tensor([2, 1, 0, 5, 4, 3])
    poisoned = torch.where(mask[:, None] == 1, y, poison)
    for function in (lambda t: club(t, mask), lambda t: club_sampled(t, index, mask)):
        clean, dirty = (value_and_grad(function, t, dtype=dtype) for t in (y, poisoned))
        assert all(torch.equal(c, d) for c, d in zip(clean, dirty, strict=True))
        assert (dirty[1][mask == 0] == 0).all()


def test_nan_in_a_counted_row_gives_nan():
    for poison in (math.nan, math.inf):
        y = normal(5, 3)
        y[3, 1] = poison
        mask, index = torch.tensor([1, 1, 0, 1, 1]), torch.tensor([1, 0, 0, 4, 3])
        for value in (club(y), club(y, mask), club_sampled(y, index), club_sampled(y, index, mask)):
            assert value.isnan() if math.isnan(poison) else not value.isfinite()


def test_club_sampled_equals_the_oracle():
    y = normal(33, 7)
    index = torch.randint(33, (33,), generator=torch.Generator().manual_seed(0))
    assert_same(
        value_and_grad(lambda t: club_sampled(t, index), y),
        value_and_grad(lambda t: reference.club_sampled(t, index), y),
    )


@pytest.mark.parametrize("masked", [False, True])
def test_closed_form_is_the_expectation_of_the_sampled_form(masked):
    y = normal(12, 4)
    mask = torch.ones(12, dtype=torch.bool)
    mask[[1, 4, 7, 8]] = not masked
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([club_sampled(y, sample_rows(mask, generator), mask) for _ in range(2000)])
    standard_error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() - club(y, mask)) < 4 * standard_error
    assert standard_error < 0.02 * club(y, mask)  # the bound above means something


def test_offset_rows_keep_their_digits_in_float32():
    """Mean 30, deviation .05: E[y^2] - E[y]^2 would lose three digits of the value."""
    y = (30 + 0.05 * normal(400, 64)).float()
    mask = torch.ones(400)
    mask[::3] = 0
    for function, literal in (
        (club, reference.club),
        (lambda t: club(t, mask), lambda t: reference.club(t, mask)),
    ):
        assert_same(value_and_grad(function, y, dtype=torch.float32), value_and_grad(literal, y), tolerance=3e-5)
        assert abs(function(y).double() / literal(y.double()) - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_no_worse_than_eager(dtype):
    y = normal(200, 64).to(dtype)
    index = torch.randint(200, (200,), generator=torch.Generator().manual_seed(0))
    for fast, literal in (
        (club, reference.club),
        (lambda t: club_sampled(t, index), lambda t: reference.club_sampled(t, index)),
    ):
        got, eager = value_and_grad(fast, y, dtype=dtype), value_and_grad(literal, y, dtype=dtype)
        exact = value_and_grad(literal, y)
        assert got[0].dtype == torch.float32
        assert got[1].dtype == dtype
        for g, e, x in zip(got, eager, exact, strict=True):
            error, allowed = ((t.to(F64) - x).abs().max() for t in (g, e))
            assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps * x.abs().max()


def test_two_runs_give_the_same_bits():
    """Partners that repeat, in more elements than PyTorch gathers without atomics."""
    y = normal(600, 128)
    index = torch.randint(7, (600,), generator=torch.Generator().manual_seed(0))
    mu, logvar = normal(600, 128, seed=1), normal(600, 128, seed=2)
    for function, tensors in (
        (lambda t: club_sampled(t, index), (y,)),
        (lambda m, v, t: gaussian_club_sampled(m, v, t, index), (mu, logvar, y)),
    ):
        runs = [value_and_grad(function, *tensors, dtype=torch.float32) for _ in range(6)]
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_strided_rows_and_two_uses_in_one_graph():
    y = normal(5, 9).t()
    assert not y.is_contiguous()
    expected = value_and_grad(reference.club, y)
    assert_same(value_and_grad(club, y), expected)
    assert_same(value_and_grad(lambda t: club(t) + club(3 * t), y), [10 * tensor for tensor in expected])


def test_reference_implementation_is_the_specification():
    y, index = normal(6, 3), torch.tensor([1, 1, 0, 5, 2, 2])
    assert torch.equal(club(y, implementation="reference"), reference.club(y))
    assert torch.equal(club_sampled(y, index, implementation="reference"), reference.club_sampled(y, index))


# --- sample_rows --------------------------------------------------------------------------------------------------


def test_sample_rows_is_uniform_among_the_true_rows_and_never_another():
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([sample_rows(mask, generator) for _ in range(800)])
    counts = torch.bincount(draws, minlength=15)
    kept = mask.flatten() == 1
    assert (counts[~kept] == 0).all()
    expected = len(draws) / 7
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    assert chi_square < 22.5  # 6 degrees of freedom: exceeded with probability .001


def test_sample_rows_draws_one_partner_a_position_independently():
    mask = torch.ones(50, dtype=torch.bool)
    first, second = (sample_rows(mask, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert first.shape == (50,)
    assert first.dtype == torch.int64
    assert torch.equal(first, sample_rows(mask, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, second)
    assert len(first.unique()) < 50  # with replacement


# --- the learned form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 33, 257])
def test_gaussian_club_equals_the_oracle(rows):
    tensors = [normal(rows, 6, seed=seed) for seed in (1, 2, 3)]
    index = torch.randint(rows, (rows,), generator=torch.Generator().manual_seed(0))
    for fast, literal in (
        (gaussian_club, reference.gaussian_club),
        (
            lambda m, v, y: gaussian_club_sampled(m, v, y, index),
            lambda m, v, y: reference.gaussian_club_sampled(m, v, y, index),
        ),
        (gaussian_log_likelihood, reference.gaussian_log_likelihood),
    ):
        assert_same(value_and_grad(fast, *tensors), value_and_grad(literal, *tensors))


def test_gaussian_club_is_the_exact_expectation_of_its_sampled_form():
    """Over the n cyclic shifts each row meets every y once."""
    mu, logvar, y = (normal(9, 4, seed=seed) for seed in (1, 2, 3))
    shifts = [gaussian_club_sampled(mu, logvar, y, (torch.arange(9) + s) % 9) for s in range(9)]
    assert_same([torch.stack(shifts).mean()], [gaussian_club(mu, logvar, y)])


def test_gaussian_club_with_an_offset_keeps_its_digits_in_float32():
    """y at 30 with deviation .05 and mu close to it: the expanded square is off by 1e-3."""
    y = (30 + 0.05 * normal(200, 16, seed=3)).float()
    mu = y + 0.01 * normal(200, 16, seed=1).float()
    logvar = normal(200, 16, seed=2).float()
    exact = reference.gaussian_club(mu.double(), logvar.double(), y.double())
    assert abs(gaussian_club(mu, logvar, y) / exact - 1) < 5e-6
    expanded = y.square().mean(0) - 2 * mu * y.mean(0) + mu.square() - (mu - y).square()
    assert abs((expanded / (2 * logvar.exp())).sum(-1).mean() / exact - 1) > 5e-4  # what is avoided


def test_gaussian_forms_compute_half_precision_in_float32():
    mu, logvar, y = (normal(300, 32, seed=seed).bfloat16() for seed in (1, 2, 3))
    index = torch.arange(300).roll(1)
    for fast, literal in (
        (gaussian_club, reference.gaussian_club),
        (
            lambda m, v, t: gaussian_club_sampled(m, v, t, index),
            lambda m, v, t: reference.gaussian_club_sampled(m, v, t, index),
        ),
        (gaussian_log_likelihood, reference.gaussian_log_likelihood),
    ):
        value, exact = fast(mu, logvar, y), literal(mu.double(), logvar.double(), y.double())
        assert value.dtype == torch.float32
        assert abs(value / exact - 1) < 1e-5
        assert fast(mu, logvar, y.float()).dtype == torch.float32  # as under autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert gaussian_club(mu, logvar, y).dtype == torch.float32


def test_gaussian_forms_of_nan_are_nan():
    for position in range(3):
        tensors = [normal(5, 3, seed=seed) for seed in (1, 2, 3)]
        tensors[position][2, 1] = math.nan
        assert gaussian_club(*tensors).isnan()
        assert gaussian_log_likelihood(*tensors).isnan()
        assert gaussian_club_sampled(*tensors, torch.arange(5)).isnan()


# --- bad input and compilation ------------------------------------------------------------------------------------

ROWS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(4),), ValueError, r"`y` has shape \[4\]; it must be \[..., d\]"),
        ((torch.zeros(0, 3),), ValueError, r"`y` holds zero rows"),
        ((torch.zeros(4, 3, dtype=torch.int64),), TypeError, r"`y` has dtype torch.int64"),
        ((ROWS, torch.ones(3)), ValueError, r"`mask` has shape \[3\]; the rows of `y` make it \[4\]"),
        ((ROWS, torch.ones(4, 1)), ValueError, r"`mask` has shape \[4, 1\]"),
        ((ROWS, torch.ones(4, device="meta")), ValueError, r"`mask` is on meta and `y` on cpu"),
        ((ROWS, torch.tensor([0, 1, 2, 1])), ValueError, r"`mask` holds values other than 0 and 1"),
        ((ROWS, torch.tensor([0, 1, 0.5, 1])), ValueError, r"`mask` holds values other than 0 and 1"),
        ((ROWS, torch.tensor([0, 1, math.nan, 1])), ValueError, r"`mask` holds values other than 0 and 1"),
        ((ROWS, torch.zeros(4)), ValueError, r"`mask` is all zero"),
    ],
)
def test_club_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        club(*arguments)
    y, *mask = arguments
    with pytest.raises(error, match=message):
        club_sampled(y, torch.zeros(4, dtype=torch.int64), *mask)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([0, 1, 2, 4]), IndexError, r"`index` holds values from 0 to 4; `y` has 4 rows"),
        (torch.tensor([0, 1, 2, -1]), IndexError, r"`index` holds values from -1 to 2"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"`index` holds 3 entries and `y` 4 rows"),
        (torch.zeros(0, dtype=torch.int64), ValueError, r"`index` is empty"),
        (torch.zeros(4), TypeError, r"`index` was torch.float32"),
        (torch.zeros(4, dtype=torch.int64, device="meta"), ValueError, r"`index` is on meta and `y` on cpu"),
    ],
)
def test_sampled_forms_refuse(index, error, message):
    with pytest.raises(error, match=message):
        club_sampled(ROWS, index)
    with pytest.raises(error, match=message):
        gaussian_club_sampled(ROWS, ROWS, ROWS, index)


@pytest.mark.parametrize("function", [gaussian_club, gaussian_log_likelihood])
def test_gaussian_forms_refuse_shapes_that_would_broadcast(function):
    with pytest.raises(ValueError, match=r"`mu` has shape \[1, 3\]; it must be that of `y`, \[4, 3\]"):
        function(torch.zeros(1, 3), ROWS, ROWS)
    with pytest.raises(ValueError, match=r"`logvar` has shape \[4, 1\]"):
        function(ROWS, torch.zeros(4, 1), ROWS)
    with pytest.raises(ValueError, match=r"`y` holds zero rows"):
        function(ROWS, ROWS, torch.zeros(0, 3))


def test_club_refuses_an_implementation_it_has_not():
    with pytest.raises(ValueError, match="`implementation` was 'cuda'"):
        club(ROWS, implementation="cuda")
    with pytest.raises(ValueError, match="`implementation` was 'cuda'"):
        club_sampled(ROWS, torch.arange(4), implementation="cuda")


def test_validate_false_skips_the_value_checks():
    y = normal(3, 2)
    assert torch.equal(club(y, torch.tensor([1, 2, 0]), validate=False), club(y, torch.tensor([1, 1, 0])))
    assert club(y, torch.zeros(3), validate=False).isnan()
    with pytest.raises(IndexError, match="out of range"):  # PyTorch's own words: ours were skipped
        club_sampled(y, torch.tensor([0, 1, 3]), validate=False)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_a_graph_break(masked):
    torch._dynamo.reset()
    y = normal(6, 4)
    mask = torch.tensor([1, 0, 1, 1, 1, 0]) if masked else None
    compiled = torch.compile(lambda t: club(t, mask), backend="eager", fullgraph=True)
    assert_same(value_and_grad(compiled, y), value_and_grad(lambda t: club(t, mask), y))
    index = torch.arange(6).roll(1)
    compiled = torch.compile(lambda t: club_sampled(t, index, mask), backend="eager", fullgraph=True)
    assert_same(value_and_grad(compiled, y), value_and_grad(lambda t: club_sampled(t, index, mask), y))


# --- properties ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_club_ignores_shape_order_and_offset(batch, length, width, seed):
    y = normal(batch, length, width, seed=seed)
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[0, 0] = True
    expected = club(y, mask)
    rows = y[mask]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for same in (club(rows), club(rows[order]), club(y + 7, mask), club(rows.unsqueeze(1).unsqueeze(0))):
        torch.testing.assert_close(same, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(club(2 * y, mask), 4 * expected)
    assert expected >= 0
