"""CLUB's kernels, exact and sampled: values and gradients against every pair in float64."""

import math

import pytest
import torch

from infobert_fast import reference
from infobert_fast.kernels import club, sampled_club

F64 = torch.float64


class Case:
    """Rows, a mask or None, and partners among the counted rows; masked rows hold NaN."""

    def __init__(self, rows, width, dtype, device, *, masked=False, mean=0.0, deviation=1.0, few=None):
        generator = torch.Generator().manual_seed(rows + width)
        y = torch.randn(rows, width, generator=generator, dtype=F64) * deviation + mean
        keep = torch.rand(rows, generator=generator) < 0.6 if masked else torch.ones(rows, dtype=torch.bool)
        keep[-1] = True
        pool = keep.nonzero().flatten()[:few]
        self.index = pool[torch.randint(len(pool), (rows,), generator=generator)].to(device)
        self.y = torch.where(keep.unsqueeze(1), y, math.nan).to(device, dtype)
        self.mask = keep.to(device) if masked else None
        self.keep = keep.to(device)

    def kernel(self, sampled, y=None, grad=1.0):
        """(bound, dy) by the kernels."""
        y = self.y if y is None else y
        incoming = torch.tensor(grad, device=y.device, dtype=torch.float64 if y.dtype == F64 else torch.float32)
        if sampled:
            bound, total = sampled_club.sampled_club_forward(y, self.index, self.mask)
            return bound, sampled_club.sampled_club_backward(incoming, y, self.index, self.mask, total)
        bound, *kept = club.club_forward(y, self.mask)
        return bound, club.club_backward(incoming, y, self.mask, *kept)

    def literal(self, sampled, dtype=F64, grad=1.0):
        """(bound, dy) of the specification in ``dtype``, over the counted rows alone."""
        y = torch.where(self.keep.unsqueeze(1), self.y, 0).to(dtype).requires_grad_()
        bound = reference.club_sampled(y, self.index, self.mask) if sampled else reference.club(y, self.mask)
        return bound.detach(), torch.autograd.grad(grad * bound, y)[0]


def error(got, exact):
    return float((got.to(F64) - exact.to(F64)).abs().max())


def assert_no_worse_than_pytorch(case, sampled):
    """Than the literal form in the same dtype, but for a rounding of the result: float32 for the bound."""
    got, exact, plain = case.kernel(sampled), case.literal(sampled), case.literal(sampled, case.y.dtype)
    assert got[1].dtype == case.y.dtype
    for g, x, p, dtype in zip(got, exact, plain, (got[0].dtype, case.y.dtype), strict=True):
        assert error(g, x) <= 2 * error(p, x) + 2 * torch.finfo(dtype).eps * float(x.abs().max()) + 1e-300


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1), (2, 7), (31, 33), (32, 128), (33, 129), (47, 300), (150, 20)], ids=str
)
def test_values_and_gradients(rows, width, masked, sampled, device):
    assert_no_worse_than_pytorch(Case(rows, width, torch.float32, device, masked=masked), sampled)


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, sampled, device):
    case = Case(70, 40, dtype, device, masked=True)
    assert_no_worse_than_pytorch(case, sampled)
    bound = case.kernel(sampled)[0]
    assert bound.dtype == torch.float32
    assert error(bound, case.literal(sampled)[0]) < 1e-6 * float(bound)  # sums are float32


@pytest.mark.parametrize("ranges", [1, 3, 128])
def test_ranges_of_rows_are_merged(ranges, device, monkeypatch):
    monkeypatch.setattr(club, "RANGES", ranges)
    monkeypatch.setattr(club, "LEAST_ROWS", 16)
    assert_no_worse_than_pytorch(Case(200, 9, torch.float32, device, masked=True), False)


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize(("mean", "deviation"), [(50.0, 1.0), (50.0, 0.05), (1e4, 0.05)])
def test_an_offset_costs_no_digits(mean, deviation, sampled, device):
    case = Case(300, 17, torch.float32, device, masked=True, mean=mean, deviation=deviation)
    (bound, dy), (exact, exact_dy) = case.kernel(sampled), case.literal(sampled)
    assert error(bound, exact) < 1e-6 * float(exact)
    assert error(dy, exact_dy) < 1e-6 * float(exact_dy.abs().max())


def test_a_first_row_far_from_the_others(device):
    """What everything is relative to may lie a thousand deviations away."""
    case = Case(300, 5, torch.float32, device)
    case.y[0] += 1000
    (bound, dy), (exact, exact_dy) = case.kernel(False), case.literal(False)
    assert error(bound, exact) < 1e-6 * float(exact)
    assert error(dy, exact_dy) < 1e-6 * float(exact_dy.abs().max())


def test_the_first_counted_row_may_be_far(device, monkeypatch):
    monkeypatch.setattr(club, "MASK", 16)
    case = Case(100, 5, torch.float32, device, masked=True, mean=50.0)
    case.mask[:70], case.keep[:70], case.y[:70] = False, False, math.nan
    case.index.fill_(99)
    for sampled in (False, True):
        assert_no_worse_than_pytorch(case, sampled)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
def test_no_counted_row_gives_nan_and_no_gradient(sampled, device):
    case = Case(40, 5, torch.float32, device, masked=True)
    case.mask.zero_()
    bound, dy = case.kernel(sampled)
    assert bound.isnan()
    assert not dy.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_counted_row_that_is_not_finite(poison, sampled, device):
    case = Case(40, 5, torch.float32, device)
    case.y[7, 3] = poison
    bound, dy = case.kernel(sampled)
    assert not bound.isfinite()
    assert not dy[7, 3].isfinite()


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
def test_strides_and_masks_of_any_dtype(sampled, device):
    case = Case(50, 12, torch.float32, device, masked=True)
    expected = case.kernel(sampled)
    for y in (
        torch.empty(12, 50, device=device).t().copy_(case.y),
        torch.zeros(50, 30, device=device)[:, 3:27:2].copy_(case.y),
    ):
        assert all(torch.equal(g, e) for g, e in zip(case.kernel(sampled, y), expected, strict=True))
    for dtype in (torch.int64, torch.float32, torch.bfloat16, torch.uint8):
        case.mask = torch.zeros(50, 2, device=device, dtype=dtype)[:, 1].copy_(case.keep)
        assert all(torch.equal(g, e) for g, e in zip(case.kernel(sampled), expected, strict=True))


def test_a_row_that_many_chose(device):
    """All 300 rows choose among three: their gradients are sums of a hundred."""
    case = Case(300, 9, torch.float32, device, masked=True, few=3)
    assert_no_worse_than_pytorch(case, True)


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
def test_two_runs_give_the_same_bits(sampled, device):
    case = Case(300, 40, torch.float32, device, masked=True, few=5)
    first, second = case.kernel(sampled), case.kernel(sampled)
    assert all(torch.equal(g, e) for g, e in zip(first, second, strict=True))


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("masked", [False, True])
def test_float64(sampled, masked, device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    case = Case(70, 13, F64, device, masked=masked)
    for got, exact in zip(case.kernel(sampled, grad=1.5), case.literal(sampled, grad=1.5), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-13, atol=1e-14)
