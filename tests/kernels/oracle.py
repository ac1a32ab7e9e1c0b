"""The critic written literally, and inputs for it."""

from typing import NamedTuple

import torch

from infobert_fast.kernels.pairs import Pairs


class Case(NamedTuple):
    """Inputs of one call: operands, indices and chunk size."""

    a: torch.Tensor
    b: torch.Tensor
    w2: torch.Tensor
    b2: torch.Tensor
    options: dict

    @property
    def operands(self):
        return self.a, self.b, self.w2, self.b2

    @property
    def pairs(self):
        index = self.options["local_index"]
        return Pairs(self.a.shape[0] if index is None else index.shape[0], **self.options)


def literal(a, b, w2, b2, *, local_index=None, pair_index=None, chunk_size=None):
    """logsumexp_j w2 . relu(a_j + b_i) + b2 with every pair's hidden units in memory."""
    local = a if local_index is None else a[local_index]
    if chunk_size is None:
        return torch.logsumexp(torch.relu(local[None, :, :] + b[:, None, :]) @ w2 + b2, dim=1)
    pairs = zip(local.split(chunk_size), (b if pair_index is None else b[pair_index]).split(chunk_size), strict=True)
    return torch.cat([literal(x, y, w2, b2) for x, y in pairs])


def make_case(
    rows,
    H,
    *,
    globals_=None,
    pairs=None,
    chunk_size=None,
    dtype=torch.float32,
    device="cpu",
    offset=0.0,
    layout="plain",
    seed=0,
):
    """Normal rows, ``w2`` with exact zeros, indices with repeats where ``pairs`` is given; ``layout`` of them all."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(n):
        x = torch.randn(n, H, generator=generator) + (offset if len(made) == 0 else -offset)
        made.append(n)
        if layout == "strided":
            return torch.zeros(n + 1, 2 * H + 3, dtype=dtype, device=device)[1:, 3::2].copy_(x)
        if layout == "transposed":
            return torch.empty(H, n, dtype=dtype, device=device).t().copy_(x)
        return x.to(device, dtype)

    made = []
    globals_ = rows if globals_ is None else globals_
    a, b = matrix(rows), matrix(globals_)
    w2 = torch.randn(H, generator=generator) / H**0.5
    w2[2::5] = 0
    b2 = torch.randn(1, generator=generator)
    options = {"chunk_size": chunk_size, "local_index": None, "pair_index": None}
    if pairs is not None:
        options["local_index"] = torch.randint(rows, (pairs,), generator=generator).to(device)
        options["pair_index"] = torch.randint(globals_, (pairs,), generator=generator).to(device)
    w2 = w2.to(device, dtype)
    if layout == "strided":
        w2 = torch.zeros(H, 3, dtype=dtype, device=device)[:, 1].copy_(w2)
        for name in ("local_index", "pair_index"):
            if (index := options[name]) is not None:
                options[name] = index.new_zeros(len(index), 2)[:, 1].copy_(index)
    return Case(a, b, w2, b2.to(device, dtype), options)


def values_and_gradients(case, dtype, grad=None):
    """Literal (lse, da, db, dw2, db2) computed in ``dtype``, and the incoming gradient used."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in case.operands]
    lse = literal(*leaves, **case.options)
    if grad is None:
        grad = torch.randn(lse.shape, generator=torch.Generator().manual_seed(1)).to(lse.device)
    return (lse.detach(), *torch.autograd.grad(lse, leaves, grad.to(dtype))), grad
