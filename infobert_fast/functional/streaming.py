"""The estimator's one primitive in plain PyTorch: bounded memory on any device, the twin of the Triton kernels.

``lse[k, i] = logsumexp_j ( w2 . relu(a[k, j] + b[k, i]) + b2 )`` for k independent problems. Scores are formed for one
cache-sized block at a time and recomputed in the backward, so that the extra memory is O(block + K (I + J) H) instead
of the K x I x J x H that autograd would keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from infobert_fast.functional.once import first_order

__all__ = ["pairwise_mlp_logsumexp"]


def block_elements(device: torch.device) -> int:
    """Elements of one block of hidden activations.

    On a CPU 2^21 float32, 8 MiB: within the last-level cache, and large enough for the arithmetic to hide the dispatch
    of a block's few operators (2^19 was 1.5 to 1.7 times slower, 2^22 no faster, at N = 512 and 2048, H = 300, two
    cores). On an accelerator launches weigh more: 2^25.
    """
    return 1 << (21 if device.type == "cpu" else 25)


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Cover K x I x J by slices of at most one block, as square as they can be.

    The backward sums a block over i and over j, and a sum over few rows is slow: it reads and writes as many partial
    sums as there are elements left. Blocks of 3 x 2,048 took 3 to 5 times as long for it as blocks of 80 x 80.
    """
    (K, J, H), I = a.shape, b.shape[1]  # noqa: E741
    pairs = max(1, block_elements(a.device) // H)
    i_step = min(I, max(math.isqrt(pairs), pairs // J))
    j_step = min(J, pairs // i_step)
    k_step = min(K, pairs // (i_step * j_step))
    for k in range(0, K, k_step):
        for i in range(0, I, i_step):
            for j in range(0, J, j_step):
                yield slice(k, k + k_step), slice(i, i + i_step), slice(j, j + j_step)


def _workspace(a: Tensor, b: Tensor) -> Tensor:
    """One block's memory, allocated once: fresh pages for every block would cost more than the arithmetic."""
    (K, J, H), I = a.shape, b.shape[1]  # noqa: E741
    return a.new_empty(min(max(block_elements(a.device), H), K * I * J * H))


def _block(workspace: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The part of the workspace that holds ``[k, i, j, H]`` for these rows."""
    shape = (a.shape[0], b.shape[1], a.shape[1], a.shape[2])
    return workspace[: math.prod(shape)].view(shape)


def _scores(workspace: Tensor, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``u[k, i, j]`` of one block."""
    hidden = _block(workspace, a, b)
    torch.add(a.unsqueeze(1), b.unsqueeze(2), out=hidden).clamp_min_(0)
    return torch.mv(hidden.view(-1, hidden.shape[-1]), w2).view(hidden.shape[:-1]) + b2


class _PairwiseMlpLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        lse = a.new_full(b.shape[:2], -torch.inf)
        workspace = _workspace(a, b)
        for k, i, j in _blocks(a, b):
            block = torch.logsumexp(_scores(workspace, a[k, j], b[k, i], w2, b2), dim=2)
            lse[k, i] = torch.logaddexp(lse[k, i], block)
        ctx.save_for_backward(a, b, w2, b2, lse)
        return lse

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_lse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, w2, b2, lse = ctx.saved_tensors
        # G_ij = grad_i exp(u_ij - lse_i); ga_j = sum_i G_ij 1[a_j + b_i > 0], gb_i alike. Then da = w2 ga, db = w2 gb
        # and, since relu(t) = t 1[t > 0], dw2 = sum_j a_j ga_j + sum_i b_i gb_i: no further pass over the pairs.
        ga, gb, total = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(b2)
        workspace = _workspace(a, b)
        for k, i, j in _blocks(a, b):
            a_block, b_block = a[k, j], b[k, i]
            weight = _scores(workspace, a_block, b_block, w2, b2).sub_(lse[k, i, None]).exp_()
            weight.mul_(grad_lse[k, i, None])
            # The hidden units are spent; 1[a > -b] takes their place.
            active = _block(workspace, a_block, b_block)
            torch.gt(a_block.unsqueeze(1), -b_block.unsqueeze(2), out=active).mul_(weight.unsqueeze(3))
            ga[k, j] += active.sum(1)
            gb[k, i] += active.sum(2)
            total += weight.sum()
        dw2 = torch.einsum("kjh,kjh->h", a, ga) + torch.einsum("kih,kih->h", b, gb)
        return ga * w2, gb * w2, dw2, total


def pairwise_mlp_logsumexp(a: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``[K, J, H], [K, I, H], [H], [1] -> [K, I]`` in nats; half precision is computed and returned in float32.

    A common offset ``a + c, b - c`` leaves every sum unchanged but costs digits in them and in ``dw2``; it is removed
    first, a constant as far as gradients are concerned.
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b, w2, b2 = (tensor.to(dtype) for tensor in (a, b, w2, b2))
    with torch.no_grad():
        centre = (a.mean((0, 1)) - b.mean((0, 1))) / 2
    return _PairwiseMlpLogsumexp.apply(a - centre, b + centre, w2, b2)
