"""The estimator's one primitive in plain PyTorch: bounded memory on any device, the twin of the Triton kernels.

``lse[k, i] = logsumexp_j ( w2 . relu(a[k, j] + b[k, i]) + b2 )`` for k independent problems. Scores are formed for one
cache-sized block at a time and recomputed in the backward, so that the extra memory is O(block + K (I + J) H) instead
of the K x I x J x H that autograd would keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast.functional.compiled import VECTOR, Compiled
from infobert_fast.kernels.once import first_order
from infobert_fast.kernels.pairs import Terms

__all__ = ["pairwise_mlp_logsumexp"]


EVERY = Terms()


def block_elements(device: torch.device) -> int:
    """Elements of one block of hidden activations.

    On a CPU 2^21 float32, 8 MiB: within the last-level cache, and large enough for the arithmetic to hide the dispatch
    of a block's few operators (2^19 was 1.5 to 1.7 times slower, 2^22 no faster, at N = 512 and 2048, H = 300, two
    cores). On an accelerator launches weigh more: 2^25.
    """
    return 1 << (21 if device.type == "cpu" else 25)


def _blocks(a: Tensor, b: Tensor, pairs: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cover K x I x J by slices of at most this many pairs, as square as they can be.

    The backward sums a block over i and over j, and a sum over few rows is slow: it reads and writes as many partial
    sums as there are elements left. Blocks of 3 x 2,048 took 3 to 5 times as long for it as blocks of 80 x 80.
    """
    (K, J, _), I = a.shape, b.shape[1]  # noqa: E741
    i_step = min(I, max(math.isqrt(pairs), pairs // J))
    j_step = min(J, pairs // i_step)
    k_step = min(K, pairs // (i_step * j_step))
    for k in range(0, K, k_step):
        for i in range(0, I, i_step):
            for j in range(0, J, j_step):
                yield slice(k, min(k + k_step, K)), slice(i, min(i + i_step, I)), slice(j, min(j + j_step, J))


class Eager:
    """One block's arithmetic by PyTorch's operators, in memory that is allocated once: fresh pages for every block
    would cost more than the arithmetic.

    On a CPU every thread reads what it wrote itself, since all these operators share a block out by its outermost rows.
    ``torch.mv`` in the place of ``mul_, sum``, or one mask summed both ways, has threads fetch halves of the block from
    each other's caches, with which two threads could take 2.2 times as long as one (benchmarks/NOTES.md).
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        (K, J, H), I = a.shape, b.shape[1]  # noqa: E741
        elements = max(block_elements(a.device), H)
        self.pairs = elements // H  # of a block
        self.workspace = a.new_empty(min(elements, K * I * J * H))

    def _hidden(self, a: Tensor, b: Tensor) -> Tensor:
        """The part of the workspace that holds ``[k, i, j, H]`` for these rows."""
        shape = (a.shape[0], b.shape[1], a.shape[1], a.shape[2])
        return self.workspace[: math.prod(shape)].view(shape)

    def scores(self, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        """``u[k, i, j]`` of ``a [k, j, H]`` and ``b [k, i, H]``."""
        hidden = self._hidden(a, b)
        torch.add(a.unsqueeze(1), b.unsqueeze(2), out=hidden).clamp_min_(0).mul_(w2)
        return hidden.sum(3) + b2

    def active_sums(self, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_i weight 1[a_j + b_i > 0]`` ``[k, j, H]``, and the same over j ``[k, i, H]``."""
        return self._active_sum(a, b, weight.transpose(1, 2)), self._active_sum(b, a, weight)

    def _active_sum(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """``sum_q weight[k, p, q] 1[x_p + y_q > 0]`` ``[k, p, H]``."""
        active = self._hidden(y, x)
        torch.gt(x.unsqueeze(2), -y.unsqueeze(1), out=active).mul_(weight.unsqueeze(3))
        return active.sum(2)


class Arithmetic(Protocol):
    """What the loops over blocks ask for: by PyTorch's operators, or compiled."""

    pairs: int

    def scores(self, a: Tensor, b: Tensor, w2: Tensor, b2: Tensor) -> Tensor: ...

    def active_sums(self, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]: ...


class _PairwiseMlpLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        w2: Tensor,
        b2: Tensor,
        columns: Tensor | None,
        clip: float | None,
        arithmetic: Callable[[Tensor, Tensor], Arithmetic],
    ) -> Tensor:
        lse, terms = a.new_full(b.shape[:2], -torch.inf), Terms(columns, clip=clip)
        block = arithmetic(a, b)
        for k, i, j in _blocks(a, b, block.pairs):
            scores = terms.take(block.scores(a[k, j], b[k, i], w2, b2), i, j)
            lse[k, i] = torch.logaddexp(lse[k, i], torch.logsumexp(scores, dim=2))
        ctx.save_for_backward(a, b, w2, b2, lse, columns)
        ctx.clip, ctx.arithmetic = clip, arithmetic
        return lse

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        a, b, w2, b2, lse, columns = ctx.saved_tensors
        terms = Terms(columns, clip=ctx.clip)
        # G_ij = grad_i exp(u_ij - lse_i); ga_j = sum_i G_ij 1[a_j + b_i > 0], gb_i alike. Then da = w2 ga, db = w2 gb
        # and, since relu(t) = t 1[t > 0], dw2 = sum_j a_j ga_j + sum_i b_i gb_i: no further pass over the pairs.
        ga, gb, total = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(b2)
        block = ctx.arithmetic(a, b)
        for k, i, j in _blocks(a, b, block.pairs):
            scores = block.scores(a[k, j], b[k, i], w2, b2)
            weight = terms.take(scores, i, j).sub(lse[k, i, None]).exp_().mul_(grad_lse[k, i, None])
            weight = terms.weigh(weight, scores, i, j)
            sums_a, sums_b = block.active_sums(a[k, j], b[k, i], weight)
            ga[k, j] += sums_a
            gb[k, i] += sums_b
            total += weight.sum()
        dw2 = torch.einsum("kjh,kjh->h", a, ga) + torch.einsum("kih,kih->h", b, gb)
        return ga * w2, gb * w2, dw2, total, None, None, None


def pairwise_mlp_logsumexp(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, *, terms: Terms = EVERY, compiled: bool = False
) -> Tensor:
    """``[K, J, H], [K, I, H], [H], [1] -> [K, I]`` in nats; half precision is computed and returned in float32.

    A common offset ``a + c, b - c`` leaves every sum unchanged but costs digits in them and in ``dw2``; it is removed
    first, a constant as far as gradients are concerned. ``terms`` are those of a single problem.
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b, w2, b2 = (tensor.to(dtype) for tensor in (a, b, w2, b2))
    with torch.no_grad():
        centre = (a.mean((0, 1)) - b.mean((0, 1))) / 2
    a, b = a - centre, b + centre
    if not compiled:
        return _PairwiseMlpLogsumexp.apply(a, b, w2, b2, terms.columns, terms.clip, Eager)
    # Whole vectors: a compiled loop takes the remainder of a row one by one. Hidden units of 0 have no effect.
    pad = -a.shape[2] % VECTOR
    a, b, w2 = (F.pad(tensor, (0, pad)) for tensor in (a, b, w2))
    return _PairwiseMlpLogsumexp.apply(a, b, w2, b2, terms.columns, terms.clip, Compiled)
