"""Anchored features: the tokens of each sentence whose gradient norm is neither among the lowest nor the highest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional.implementation import Implementation, choose

__all__ = ["anchor_counts", "anchor_indices", "select_anchors"]


def select_anchors(
    grad: Tensor,
    attention_mask: Tensor,
    cl: float = 0.5,
    ch: float = 0.9,
    *,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """Mark the tokens whose gradient-norm rank r, among the n of their sentence, has ``ceil(n cl) <= r < ceil(n ch)``.

    Norms ``||grad_t||_2`` are taken in float32 at least and ranked from 0 in ascending order: the lowest are the least
    useful tokens, the highest the non-robust ones. Ties are ranked by position, a NaN norm ranks as infinity, and
    padding is never chosen. ``ceil`` is taken in double precision of ``n * cl``. Norms are rounded sums: two
    that agree to their last digit may be ranked differently by another implementation.

    Args:
        grad: ``[batch, length, d]``, the gradient of the loss with respect to the embeddings.
        attention_mask: ``[batch, length]``, 1 for tokens (special tokens included), 0 for padding.
        cl, ch: the anchor window, ``0 <= cl <= ch <= 1``.
        implementation, validate: see :mod:`infobert_fast.functional`; mask values are read on a CPU unless False.

    Returns:
        bool ``[batch, length]``.

    Raises:
        ValueError: for a window or a mask that is not as said.

    Source: InfoBERT, algorithm 1, as its authors' trainer computes it (there with an unstable sort).
    """
    _check(grad, attention_mask, cl, ch, validate)
    chosen = choose(implementation, grad, kernel=True)
    if chosen == "reference":
        return reference.select_anchors(grad, attention_mask, cl, ch)
    if chosen == "triton":
        from infobert_fast.kernels import anchors as kernels

        return kernels.select_anchors(grad, attention_mask, cl, ch)
    order = _ascending(grad, attention_mask)
    n = attention_mask.bool().sum(dim=1, keepdim=True).to(torch.float64)
    rank = torch.arange(order.shape[1], device=order.device)
    window = (rank >= (n * cl).ceil()) & (rank < (n * ch).ceil())
    return torch.zeros_like(window).scatter_(1, order, window)


def anchor_indices(
    grad: Tensor,
    attention_mask: Tensor,
    cl: float = 0.5,
    ch: float = 0.9,
    *,
    lengths: Sequence[int] | None = None,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """The anchors of :func:`select_anchors` as flat indices ``i * length + t``, in the reference's order.

    Sentence by sentence, within one by ascending gradient norm; int64 ``[P]``. ``lengths``, the number of tokens of
    each sentence as the collator knows it, fixes P on the host; without it the mask is read there (a sync on a GPU).

    Raises:
        ValueError: as :func:`select_anchors`, and for ``lengths`` that are not the mask's counts.
    """
    _check(grad, attention_mask, cl, ch, validate)
    chosen = choose(implementation, grad, kernel=True)
    if chosen == "reference":
        return reference.anchor_indices(grad, attention_mask, cl, ch)
    batch, length = attention_mask.shape
    if lengths is None:
        lengths = attention_mask.bool().sum(dim=1).tolist()
    elif len(lengths) != batch or not all(1 <= n <= length for n in lengths):
        raise ValueError(
            f"`lengths` was {list(lengths)}; it must give for each of {batch} sentences 1 to {length} tokens"
        )
    elif checks.values_readable(attention_mask, validate) and list(lengths) != attention_mask.bool().sum(1).tolist():
        raise ValueError(
            f"`lengths` was {list(lengths)}; `attention_mask` counts {attention_mask.bool().sum(1).tolist()} tokens"
        )
    if chosen == "triton":
        from infobert_fast.kernels import anchors as kernels

        count = sum(math.ceil(n * ch) - math.ceil(n * cl) for n in lengths)
        return kernels.anchor_indices(grad, attention_mask, cl, ch, int(count))
    starts, counts = anchor_counts(lengths, cl, ch)
    sentence = np.repeat(np.arange(batch), counts)
    within = np.arange(len(sentence)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = torch.from_numpy(sentence * length + np.repeat(starts, counts) + within)
    first = torch.from_numpy(sentence * length)
    if grad.is_cuda:  # pinned, so that the copies do not wait
        slots, first = slots.pin_memory(), first.pin_memory()
    slots, first = slots.to(grad.device, non_blocking=True), first.to(grad.device, non_blocking=True)
    return _ascending(grad, attention_mask).flatten()[slots] + first


def anchor_counts(lengths: Sequence[int], cl: float, ch: float) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``lengths``: the first rank in the window, ``ceil(n cl)``, and how many ranks it holds."""
    starts = np.array([math.ceil(n * cl) for n in lengths], dtype=np.int64)
    stops = np.array([math.ceil(n * ch) for n in lengths], dtype=np.int64)
    return starts, stops - starts


def _ascending(grad: Tensor, attention_mask: Tensor) -> Tensor:
    """Positions of each sentence by ascending gradient norm, padding last: int64 ``[batch, length]``."""
    norms = torch.linalg.vector_norm(grad, dim=-1, dtype=torch.promote_types(grad.dtype, torch.float32))
    norms = torch.nan_to_num(norms, nan=torch.inf, posinf=torch.inf)
    # torch.sort puts NaN behind infinity, which leaves NaN free to mark padding: one stable sort ranks everything.
    return norms.masked_fill(~attention_mask.bool(), torch.nan).argsort(dim=1, stable=True)


def _check(grad: Tensor, attention_mask: Tensor, cl: float, ch: float, validate: bool | None) -> None:
    checks.anchor_window(cl, ch)
    if grad.dim() != 3:
        raise ValueError(
            f"`grad` has shape {list(grad.shape)}; it must be [batch, length, d], one gradient row a token"
        )
    checks.attention_mask(attention_mask, tuple(grad.shape[:2]), device=grad.device, validate=validate)
