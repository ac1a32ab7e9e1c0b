"""InfoNCE with the cosine critic in both directions, CLIP's loss, forward + backward over N.

Beside it, where they are installed and there is a device, the kernels of other projects: memeff's of the same loss, and
siglip-kernel's of SigLIP's, which has the same three products and a sigmoid instead of two log-sum-exps.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import functional, reference
from infobert_fast.benchmarks.harness.measuring import DEVICE, Work

WIDTH, SCALE = 768, 20.0
SIZES = (512, 2048, 8192) if DEVICE == "cpu" else (1024, 4096, 16384, 65536)
EAGER_LIMIT = 8192 if DEVICE == "cpu" else 65536  # N x N scores and their gradients, several times over
DTYPES = [torch.float32] if DEVICE == "cpu" else [torch.float32, torch.bfloat16]


def literal(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """What CLIP's users write: one N x N matrix of logits and a cross-entropy each way, left to autograd."""
    logits = scale * (F.normalize(x) @ F.normalize(y).T)
    own = torch.arange(len(x), device=x.device)
    return math.log(len(x)) - (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(literal, dynamic=False)


def compiled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return _compiled()(x, y, scale)


def ours(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return functional.separable_info_nce(x, y, critic="cosine", scale=scale, symmetric=True)


IMPLEMENTATIONS = {"literal": literal, "compiled": compiled, "infobert-fast": ours}


def operands(pairs: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    features = torch.randn(2, pairs, width, device=DEVICE)
    tensors = [features[0], features[0] + features[1], torch.tensor(SCALE, device=DEVICE)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def check(function: Callable[..., Tensor]) -> None:
    """Value and gradients against the specification in float64, on 65 pairs in float32."""
    tensors = operands(65, 24, torch.float32)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = reference.separable_info_nce(*wide[:2], critic="cosine", scale=wide[2], symmetric=True)
    got = function(*tensors)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("pairs", SIZES)
def test_clip(measure, gate, implementation, function, pairs, dtype):
    if implementation in ("literal", "compiled") and pairs > EAGER_LIMIT:
        pytest.skip(f"{implementation} does not fit at {pairs:,} pairs")
    if DEVICE == "cpu" and implementation == "compiled" and pairs != 2048:
        pytest.skip("compiled at 2,048 pairs alone on a CPU: each size compiles for seconds")
    gate(implementation, lambda: check(function))
    tensors = operands(pairs, WIDTH, dtype)
    # three products of N x N x d (ours make the scores again, a fourth); features and gradients once
    products = 3 * pairs * pairs * WIDTH
    work = Work(**{"half" if dtype == torch.bfloat16 else "fp32": products}, bytes=4 * pairs * WIDTH * dtype.itemsize)
    measure(lambda: function(*tensors).backward(), work=work)


class Peer(NamedTuple):
    """Another project's loss of (x, y, scale), and what it says that it computes."""

    loss: Callable[..., Tensor]
    definition: Callable[..., Tensor]


def memeff(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    # its default rescales the gradient; the temperature is a number there and learns nothing
    return importlib.import_module("memeff").MemoryEfficientCLIPLoss(temperature=1 / SCALE, stable=False)(x, y)


def clip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return math.log(len(x)) - literal(x, y, scale)


def siglip_kernel(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    loss = importlib.import_module("siglip_kernel").fused_siglip_loss
    return loss(F.normalize(x), F.normalize(y), scale.log(), torch.full_like(scale, -SCALE / 2))


def siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(x), dtype=x.dtype, device=x.device) - 1
    logits = scale * (F.normalize(x) @ F.normalize(y).T) - SCALE / 2
    return -F.logsigmoid(signs * logits).sum() / len(x)


KNOWN = {"memeff": Peer(memeff, clip), "siglip_kernel": Peer(siglip_kernel, siglip)}
PEERS = {name: peer for name, peer in KNOWN.items() if DEVICE != "cpu" and importlib.util.find_spec(name)}


def check_peer(peer: Peer) -> None:
    """Value and gradients of both sides against its own definition in float64, on 128 pairs in float32."""
    *tensors, scale = operands(128, 64, torch.float32)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected, got = peer.definition(*wide, scale.double()), peer.loss(*tensors, scale)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-3)
    for mine, theirs in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(expected, wide), strict=True):
        assert (mine - theirs).norm() <= 2e-2 * theirs.norm()  # products in TF32 or half precision


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("pairs", SIZES)
@pytest.mark.parametrize("peer", PEERS)
def test_peer(measure, gate, peer, pairs, dtype):
    gate(peer, lambda: check_peer(PEERS[peer]))
    tensors = operands(pairs, WIDTH, dtype)
    measure(lambda: PEERS[peer].loss(*tensors).backward())
