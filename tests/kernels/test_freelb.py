"""FreeLB's kernels: the start bit for bit as PyTorch's integers and the literal Philox have it, the ascent's values."""

import math

import pytest
import torch

from infobert_fast import reference
from infobert_fast.functional import freelb_init
from infobert_fast.functional import freelb_step as dispatched
from infobert_fast.kernels import freelb
from infobert_fast.kernels.freelb import freelb_step
from infobert_fast.kernels.uniform import freelb_start

HOLES = [[1] * 20, [0] * 9 + [1] * 11, [1] * 3 + [0] * 17, [1, 0, 0, 1] * 5, [0] * 20]


def masked(device):
    return torch.tensor(HOLES, device=device)


# --- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "norm_type", "seed", "ids"),
    [
        (1, "linf", 0, None),
        (6, "l2", 12345678901234567, [5, 2**40 + 3, -7, 1, 0]),
        (6, "linf", -5, [5, 2**40 + 3, -7, 1, 0]),
        (300, "l2", 2**63 - 1, None),
    ],
    ids=str,
)
def test_the_start_is_that_of_pytorch_bit_for_bit(width, norm_type, seed, ids, device):
    ids = None if ids is None else torch.tensor(ids, device=device)
    mask = masked(device)
    got = freelb_start(mask, ids, width, 0.3, norm_type, seed, torch.float32)
    plain = freelb_init(
        torch.zeros(*mask.shape, width, device=device), mask, 0.3, norm_type, seed=seed, sentence_ids=ids,
        implementation="torch", validate=False,
    )  # fmt: skip
    assert torch.equal(got, plain)
    assert not got[mask == 0].any()
    assert got[mask == 1].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 50])
def test_the_start_of_every_length_is_that_of_pytorch_bit_for_bit(width, dtype, device):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("float64 runs under the interpreter only")
    mask = (torch.arange(16) < torch.arange(1, 17).unsqueeze(1)).to(device)
    got = freelb_start(mask, None, width, 0.08, "l2", 5, dtype)
    embeddings = torch.zeros(16, 16, width, device=device, dtype=dtype)
    assert torch.equal(got, freelb_init(embeddings, mask, 0.08, seed=5, implementation="torch"))


def test_the_start_in_blocks(device, monkeypatch):
    """More tokens than a block of the mask and than a program's; masks of any type and stride."""
    monkeypatch.setattr("infobert_fast.kernels.uniform.MASK", 16)
    mask = (torch.arange(40) % 3 > 0).repeat(2, 1).to(device)
    expected = freelb_init(torch.zeros(2, 40, 5, device=device), mask, 0.1, seed=3, implementation="torch")
    for dtype in (torch.bool, torch.int64, torch.float32, torch.bfloat16):
        strided = torch.zeros(40, 2, device=device, dtype=dtype).t().copy_(mask)
        assert torch.equal(freelb_start(strided, None, 5, 0.1, "l2", 3, torch.float32), expected)


# --- the ascent -----------------------------------------------------------------------------------------------------


def operands(device, length=16, width=37, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = masked(device)[:4, :length]
    delta, grad = (torch.randn(4, length, width, generator=generator).to(device) for _ in range(2))
    return 0.02 * delta * mask.unsqueeze(-1), scale * grad, mask


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
@pytest.mark.parametrize(
    ("max_norm", "scale"), [(0.0, 1.0), (0.3, 1.0), (100.0, 1.0), (0.3, 1e-9), (0.0, 1e-9), (0.0, 0)]
)
def test_the_ascent_is_as_specified(norm_type, max_norm, scale, device):
    """Gradients of 1e-9 meet the clamp of the norm at 1e-8; .3 projects some sentences and not others."""
    delta, grad, mask = operands(device, scale=scale)
    got = freelb_step(delta, grad, mask, 0.1, max_norm, norm_type)
    exact = reference.freelb_step(delta.double(), grad.double(), mask, 0.1, max_norm, norm_type)
    plain = dispatched(delta, grad, mask, 0.1, max_norm, norm_type, implementation="torch")
    error, allowed = ((x.double() - exact).abs().max() for x in (got, plain))
    assert error <= 2 * allowed + 2e-7 * exact.abs().max()
    assert not got[mask == 0].any()
    if scale == 0 and max_norm == 0:
        assert torch.equal(got, delta)


def test_some_sentences_are_projected_and_others_are_not(device):
    delta, grad, mask = operands(device)
    free = freelb_step(delta, grad, mask, 0.1, 0.0, "l2").flatten(1).norm(dim=1)
    projected = freelb_step(delta, grad, mask, 0.1, 0.3, "l2").flatten(1).norm(dim=1)
    assert 0 < (free > 0.3).sum() < 4
    torch.testing.assert_close(projected, free.clamp(max=0.3), rtol=1e-5, atol=0)


def test_a_move_that_nearly_cancels(device):
    """Down the old delta: its expanded norm keeps an absolute error of 1e-7 of the longer of the two."""
    delta, _, mask = operands(device)
    grad = -delta / delta.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    for lr in (0.2, 0.4):
        got = freelb_step(delta, grad, mask, lr, 0.05, "l2")
        exact = reference.freelb_step(delta.double(), grad.double(), mask, lr, 0.05, "l2")
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_square_that_rounds_below_zero_is_a_norm_of_zero(device):
    """Back to where it came from: what is left of the expanded square is its rounding, here of either sign."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(64, 3, 5, generator=generator).to(device)
    delta /= delta.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    mask = torch.ones(64, 3, dtype=torch.int64, device=device)
    grad = -3 * delta
    gg, dg, dd = ((x * y).flatten(1).sum(1) for x, y in ((grad, grad), (delta, grad), (delta, delta)))
    rate = 1 / gg.sqrt()
    assert (dd + 2 * rate * dg + (rate * gg.sqrt()) ** 2 < 0).any()
    got = freelb_step(delta, grad, mask, 1.0, 0.5, "l2")
    assert got.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_half_precision_gradients_move_a_float32_delta(dtype, norm_type, device):
    delta, grad, mask = operands(device)
    got = freelb_step(delta, grad.to(dtype), mask, 0.1, 0.3, norm_type)
    exact = reference.freelb_step(delta.double(), grad.to(dtype).double(), mask, 0.1, 0.3, norm_type)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("norm_type", ["l2", "linf"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_sentence(norm_type, max_norm, poison, device):
    delta, grad, mask = operands(device)
    clean = freelb_step(delta, grad, mask, 0.1, max_norm, norm_type)
    for where in (delta, grad):
        pad, token = where.clone(), where.clone()
        pad[mask == 0] = poison
        token[1, 12, 3] = poison
        operand = (pad, grad) if where is delta else (delta, pad)
        assert torch.equal(freelb_step(*operand, mask, 0.1, max_norm, norm_type), clean)
        operand = (token, grad) if where is delta else (delta, token)
        got = freelb_step(*operand, mask, 0.1, max_norm, norm_type)
        assert torch.equal(got[[0, 2, 3]], clean[[0, 2, 3]])
        assert got[1, 12, 3].isnan() or math.isinf(poison)
        if (where is delta, norm_type, max_norm) != (True, "linf", 0.1):  # there the clamp brings infinity back
            assert not got[1].isfinite().all()
        assert not got[mask == 0].any()


def test_strides_and_many_parts(device, monkeypatch):
    monkeypatch.setattr(freelb, "PARTS_AT_ONCE", 2)
    delta, grad, mask = operands(device)
    for norm_type, max_norm in (("l2", 0.3), ("linf", 0.05)):
        expected = dispatched(delta, grad, mask, 0.1, max_norm, norm_type, implementation="torch")
        strided = (torch.empty(37, 4, 16, device=device).permute(1, 2, 0).copy_(x) for x in (delta, grad))
        got = freelb_step(*strided, torch.zeros(16, 4, device=device).t().copy_(mask), 0.1, max_norm, norm_type)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
        assert got.is_contiguous()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_a_sentence_of_padding_stays_at_zero(norm_type, device):
    mask = masked(device)
    moved = freelb_step(torch.ones(5, 20, 3, device=device), torch.ones(5, 20, 3, device=device), mask, 1, 1, norm_type)
    assert not moved[4].any()
    assert moved[:4].isfinite().all()


def test_float64(device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    delta, grad, mask = operands(device)
    for norm_type in ("l2", "linf"):
        for max_norm in (0.0, 0.3):
            args = (delta.double(), grad.double(), mask, 0.1, max_norm, norm_type)
            torch.testing.assert_close(freelb_step(*args), reference.freelb_step(*args), rtol=1e-12, atol=1e-15)
        start = freelb_start(mask, None, 7, 0.3, norm_type, 9, torch.float64)
        expected = reference.freelb_init(torch.zeros(4, 16, 7, dtype=torch.float64), mask, 0.3, norm_type, seed=9)
        torch.testing.assert_close(start, expected, rtol=1e-14, atol=0)
