"""The Triton kernels under autograd: raw launches in eager code, the registered operator where a graph is compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infobert_fast.kernels.once import first_order

__all__ = ["info_nce", "is_short", "pairwise_mlp_logsumexp"]


class _PairwiseMlpLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        w2: Tensor,
        b2: Tensor,
        local_index: Tensor | None,
        pair_index: Tensor | None,
        chunk_size: int | None,
        precision: str,
    ) -> Tensor:
        from infobert_fast.kernels.pairwise_mlp import pairwise_mlp_forward

        lse, scores = pairwise_mlp_forward(
            a,
            b,
            w2,
            b2,
            local_index=local_index,
            pair_index=pair_index,
            chunk_size=chunk_size,
            precision=precision,
            keep_scores=any(ctx.needs_input_grad[:3]),
        )
        ctx.save_for_backward(lse, a, b, w2, b2, scores, local_index, pair_index)
        ctx.chunk_size, ctx.precision = chunk_size, precision
        return lse

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        from infobert_fast.kernels.pairwise_mlp import pairwise_mlp_backward

        lse, a, b, w2, b2, scores, local_index, pair_index = ctx.saved_tensors
        gradients = pairwise_mlp_backward(
            grad_lse,
            lse,
            a,
            b,
            w2,
            b2,
            scores=scores,
            local_index=local_index,
            pair_index=pair_index,
            chunk_size=ctx.chunk_size,
            precision=ctx.precision,
            need=ctx.needs_input_grad[:4],
        )
        return (*gradients, None, None, None, None)


def pairwise_mlp_logsumexp(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    chunk_size: int | None,
    precision: str,
) -> Tensor:
    """As :func:`infobert_fast.functional.pairwise_mlp_logsumexp`. Triton is imported here, at the first call."""
    if torch.compiler.is_compiling():
        from infobert_fast.kernels.operators import pairwise_mlp

        lse: Tensor = pairwise_mlp(a, b, w2, b2, local_index, pair_index, chunk_size, precision)
    else:
        # Crossing a registered operator's boundary costs microseconds that the paper's regime would feel.
        lse = _PairwiseMlpLogsumexp.apply(a, b, w2, b2, local_index, pair_index, chunk_size, precision)
    return lse


class _ChunkBound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        w2: Tensor,
        b2: Tensor,
        local_index: Tensor | None,
        pair_index: Tensor | None,
        chunk_size: int,
    ) -> Tensor:
        from infobert_fast.kernels.chunk_bound import chunk_bound

        bound, *gradients = chunk_bound(a, b, w2, b2, local_index, pair_index, chunk_size, ctx.needs_input_grad[:4])
        # the inputs themselves only mark where a second derivative would have to pass
        ctx.save_for_backward(*gradients, a, b, w2, b2)
        return bound

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_bound: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors[:4]
        scaled = iter(torch._foreach_mul([x for x in gradients if x is not None], grad_bound))  # one launch for all
        return (*(None if x is None else next(scaled) for x in gradients), None, None, None)


def is_short(chunk_size: int) -> bool:
    """Whether chunks of this size have a kernel of their own for the whole bound."""
    from infobert_fast.kernels.chunks import LONGEST

    short: bool = chunk_size <= LONGEST
    return short


def info_nce(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    chunk_size: int,
) -> Tensor:
    """The bound of :func:`infobert_fast.functional.info_nce` over short chunks, from projected rows: ``[]`` in nats.

    The forward makes the gradients as well, where any is needed; the backward scales them.
    """
    if torch.compiler.is_compiling():
        from infobert_fast.kernels.operators import chunk_info_nce

        bound: Tensor = chunk_info_nce(a, b, w2, b2, local_index, pair_index, chunk_size)[0]
    else:
        bound = _ChunkBound.apply(a, b, w2, b2, local_index, pair_index, chunk_size)
    return bound
