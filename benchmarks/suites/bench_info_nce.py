"""InfoNCE with the concatenating critic, forward + backward: all pairs over N, the paper's chunks, widths."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import InfoNCE, functional, reference
from infobert_fast.benchmarks.harness.measuring import DEVICE, Work

WIDTH, HIDDEN = 768, 300
SIZES = (128, 256, 512, 1024, 2048) if DEVICE == "cpu" else (256, 1024, 4096, 16384)
LITERAL_LIMIT, BROADCAST_LIMIT = (512, 1024) if DEVICE == "cpu" else (1024, 8192)  # beyond, memory runs out


def factorised(
    x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, chunk: int | None = None
) -> Tensor:
    """What a careful PyTorch user writes: two projections, then an N x N x H broadcast left to autograd."""
    wx, wy = w1.split((x.shape[1], y.shape[1]), dim=1)
    size = chunk or len(x)
    a, b = (x @ wx.T).view(-1, 1, size, len(wx)), (y @ wy.T + b1).view(-1, size, 1, len(wx))
    scores = F.softplus(torch.relu(a + b) @ w2.reshape(-1) + b2)
    return scores.diagonal(dim1=1, dim2=2).mean() - (torch.logsumexp(scores, dim=2) - math.log(size)).mean()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(factorised, dynamic=False)


def compiled(*tensors: Tensor, chunk: int | None = None) -> Tensor:
    return _compiled()(*tensors, chunk=chunk)


def literal(*tensors: Tensor, chunk: int | None = None) -> Tensor:
    return reference.info_nce(*tensors, chunk_size=chunk)


def ours(*tensors: Tensor, chunk: int | None = None) -> Tensor:
    return functional.info_nce(*tensors, chunk_size=chunk)


def ours_compiled(*tensors: Tensor, chunk: int | None = None) -> Tensor:
    return functional.info_nce(*tensors, chunk_size=chunk, implementation="compiled")


IMPLEMENTATIONS = {
    "literal": literal,
    "factorised": factorised,
    "compiled": compiled,
    "infobert-fast": ours,
    "infobert-fast compiled": ours_compiled,
}


def operands(pairs: int, dtype: torch.dtype = torch.float32, width: int = WIDTH, hidden: int = HIDDEN) -> list[Tensor]:
    torch.manual_seed(0)
    critic = InfoNCE(width, width, hidden).to(DEVICE, dtype)
    features = [torch.randn(pairs, width, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2)]
    return [*features, *critic.F_func.parameters()]


def check(function: Callable[..., Tensor], chunk: int | None, rtol: float = 1e-5, grad_rtol: float = 1e-4) -> None:
    """Value and all six gradients against the literal form in float64, on 64 pairs; gradients in the L2 norm."""
    tensors = operands(64, torch.float32, width=24, hidden=40)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = literal(*wide, chunk=chunk)
    got = function(*tensors, chunk=chunk)
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=rtol / 10)
    for mine, theirs in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(expected, wide), strict=True):
        error = float((mine.double() - theirs).norm() / theirs.norm().clamp(min=1e-3))
        assert error <= grad_rtol, f"a gradient is off by {error:.1e} of its norm; {grad_rtol:.0e} is allowed"


def work(pairs: int, width: int, hidden: int, chunk: int | None) -> Work:
    """Two fp32 instructions a pair and hidden unit for the scores, two for each of the two backward sums, and the
    projections: forward 2 N d H, backward twice that.
    """
    units = pairs * (chunk or pairs) * hidden
    return Work(fp32=6 * units + 6 * pairs * width * hidden, bytes=4 * 4 * pairs * width)


@pytest.mark.parametrize("pairs", SIZES)
def test_all_pairs(measure, gate, implementation, function, pairs):
    limit = {"literal": LITERAL_LIMIT, "factorised": BROADCAST_LIMIT, "compiled": BROADCAST_LIMIT}
    if pairs > limit.get(implementation, pairs):
        pytest.skip(f"{implementation} does not fit at {pairs:,} pairs")
    if DEVICE == "cpu" and implementation == "compiled" and pairs != 512:
        pytest.skip("compiled at 512 pairs alone on a CPU: each size compiles for half a minute")
    gate((implementation, None), lambda: check(function, None))
    tensors = operands(pairs)
    measure(lambda: function(*tensors).backward(), work=work(pairs, WIDTH, HIDDEN, None))


def test_the_papers_chunks(measure, gate, implementation, function):
    """32 x 128 tokens with the window (0.5, 0.9): 1,664 pairs in 52 chunks of 32."""
    if DEVICE == "cpu" and implementation == "compiled":
        pytest.skip("compiled at 512 pairs alone on a CPU: each size compiles for half a minute")
    gate((implementation, 32), lambda: check(function, 32))
    tensors = operands(1664)
    measure(lambda: function(*tensors, chunk=32).backward(), work=work(1664, WIDTH, HIDDEN, 32))


@pytest.mark.parametrize(("width", "hidden"), [(128, 300), (1024, 300), (768, 64), (768, 1024)])
def test_widths(measure, gate, implementation, function, width, hidden):
    if implementation in ("literal", "compiled"):
        pytest.skip("the sweep over N has them")
    gate((implementation, None), lambda: check(function, None))
    tensors = operands(512, width=width, hidden=hidden)
    measure(lambda: function(*tensors).backward(), work=work(512, width, hidden, None))


@pytest.mark.skipif(DEVICE == "cpu", reason="half precision and the fast preset are a GPU's")
@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("pairs", SIZES)
def test_precisions(measure, gate, pairs, dtype, precision):
    """This package's own forms; the fast one rounds rows to half precision, which its gate allows for."""
    rtol, grad_rtol = (1e-5, 1e-4) if precision == "exact" else (1e-2, 1e-2)

    def function(*tensors: Tensor, chunk: int | None = None) -> Tensor:
        return functional.info_nce(*tensors, chunk_size=chunk, precision=precision)

    gate(("precision", precision), lambda: check(function, None, rtol, grad_rtol))
    tensors = operands(pairs, dtype)
    measure(lambda: function(*tensors).backward(), work=work(pairs, WIDTH, HIDDEN, None))
