"""The regularisers' whole path, forward + backward: select anchors, take their rows, critic, both bounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import InfoNCE, reference
from infobert_fast.benchmarks.harness.measuring import DEVICE, Work
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck

SHAPE = (32, 128, 768) if DEVICE == "cpu" else (256, 128, 1024)  # batch, length, width
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
ALPHA, BETA = 5e-3, 5e-3


class States(NamedTuple):
    """What an encoder hands over, without padding."""

    grad: Tensor  # [batch, length, d], of the loss with respect to the perturbation
    embedded: Tensor  # [batch, length, d]
    last: Tensor  # [batch, length, d]
    mask: Tensor
    lengths: list[int]
    critic: InfoNCE

    @property
    def leaves(self) -> list[Tensor]:
        return [self.embedded, self.last, *self.critic.parameters()]


def states(batch: int, length: int, d: int, dtype: torch.dtype) -> States:
    torch.manual_seed(0)
    grad, embedded, last = torch.randn(3, batch, length, d).to(DEVICE, dtype)
    mask = torch.ones(batch, length, dtype=torch.int64, device=DEVICE)
    critic = InfoNCE(d, d).to(DEVICE, torch.promote_types(dtype, torch.float32))
    return States(grad, embedded.requires_grad_(), last.requires_grad_(), mask, [length] * batch, critic)


def shuffled(anchors: Tensor) -> Tensor:
    order = np.arange(len(anchors))
    np.random.RandomState(42).shuffle(order)
    return anchors[torch.from_numpy(order).to(anchors.device)]


def literal(x: States, chunked: bool) -> Tensor:
    """As the method is written: token by token, every pair concatenated, M x M x d differences for the bottleneck."""
    batch, length = x.mask.shape
    anchors = reference.anchor_indices(x.grad, x.mask)
    pairs = [divmod(i, length) for i in (shuffled(anchors) if chunked else anchors).tolist()]
    wide = x.critic.F_func[0].weight.dtype
    local = torch.stack([x.embedded[i, t] for i, t in pairs]).to(wide)
    global_ = torch.stack([x.last[i, 0] for i, _ in pairs]).to(wide)
    afr = reference.info_nce(local, global_, *x.critic.F_func.parameters(), chunk_size=batch if chunked else None)
    return BETA * reference.club(x.embedded.to(wide), x.mask) - ALPHA * afr


def vectorised(x: States, chunked: bool) -> Tensor:
    """What a careful PyTorch user writes: a sort, an index, the critic factorised and broadcast, a trace."""
    batch, length = x.mask.shape
    first, last = math.ceil(0.5 * length), math.ceil(0.9 * length)
    ranked = x.grad.norm(dim=-1, dtype=torch.promote_types(x.grad.dtype, torch.float32)).argsort(dim=1, stable=True)
    starts = length * torch.arange(batch, device=x.mask.device).unsqueeze(1)
    anchors = (ranked[:, first:last] + starts).flatten()
    if chunked:
        anchors = shuffled(anchors)
    w1, b1, w2, b2 = x.critic.F_func.parameters()
    wx, wy = w1.split(x.embedded.shape[-1], dim=1)
    size = batch if chunked else len(anchors)
    scores = []
    a = (x.embedded.flatten(0, 1)[anchors].to(w1.dtype) @ wx.T).split(size)
    b = (x.last[:, 0].to(w1.dtype) @ wy.T + b1)[anchors // length].split(size)
    for a_chunk, b_chunk in zip(a, b, strict=True):
        table = F.softplus(torch.relu(a_chunk[None] + b_chunk[:, None]) @ w2.reshape(-1) + b2)
        scores.append(table.diagonal().mean() - (torch.logsumexp(table, dim=1) - math.log(len(table))).mean())
    rows = x.embedded.flatten(0, 1).to(w1.dtype)
    return BETA * (rows - rows.mean(0)).square().sum(1).mean() - ALPHA * torch.stack(scores).mean()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(vectorised, dynamic=False)


def ours(x: States, chunked: bool) -> Tensor:
    anchored = AnchoredFeature(negatives="chunk" if chunked else "batch")
    afr = anchored(x.critic, x.embedded, x.last[:, 0], x.grad, x.mask, x.lengths)
    return BETA * InformationBottleneck("tokens")(x.embedded, x.last, x.mask, x.lengths) - ALPHA * afr


IMPLEMENTATIONS: dict[str, Callable[[States, bool], Tensor]] = {
    "literal": literal,
    "eager": vectorised,
    **({"compiled": lambda x, chunked: _compiled()(x, chunked)} if DEVICE == "cuda" else {}),
    "infobert-fast": ours,
}


def check(function: Callable[[States, bool], Tensor], chunked: bool) -> None:
    """Value and gradients in float32 against the literal form in float64, on 5 x 20 tokens (8 anchors a sentence)."""
    x, exact = states(5, 20, 24, torch.float32), states(5, 20, 24, torch.float64)
    for mine, theirs in zip(x[:3], exact[:3], strict=True):
        theirs.data.copy_(mine)
    exact.critic.load_state_dict(x.critic.state_dict())
    got, expected = function(x, chunked), literal(exact, chunked)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(got, x.leaves), torch.autograd.grad(expected, exact.leaves), strict=True
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-7)


def work(batch: int, length: int, d: int, chunked: bool) -> Work:
    """The critic's pairs, three products a projected row; gradient and rows read, the rows' gradient written, once."""
    pairs = batch * (math.ceil(0.9 * length) - math.ceil(0.5 * length))
    columns = pairs * batch  # chunks of the batch's size, or each pair against the batch's distinct sentences
    return Work(
        fp32=6 * 300 * columns + 3 * 300 * d * (pairs + batch),
        bytes=3 * DTYPE.itemsize * batch * length * d,
    )


@pytest.mark.parametrize("negatives", ["chunk", "batch"])
@pytest.mark.parametrize("shape", [(4, 32, 768), SHAPE], ids=str)
def test_path(measure, gate, implementation, function, shape, negatives):
    chunked = negatives == "chunk"
    if shape == SHAPE and implementation == "literal":
        pytest.skip("the literal form does not fit: rows x rows x d")
    if shape == SHAPE and not chunked and implementation in ("eager", "compiled"):
        pytest.skip("the N x N x H broadcast does not fit, or takes minutes")
    gate((implementation, chunked), lambda: check(function, chunked))
    x = states(*shape, DTYPE)
    measure(lambda: function(x, chunked).backward(), work=work(*shape, chunked))
