"""CLUB without a network, in closed form over all pairs and sampled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional.implementation import Implementation, choose
from infobert_fast.kernels.once import first_order

__all__ = ["club", "club_sampled", "sample_rows"]


class _Club(torch.autograd.Function):
    """Trace of the covariance with its analytic gradient: only y itself is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, keep: Tensor | None) -> Tensor:
        # Two passes, centred: the one-pass E[y^2] - E[y]^2 cancels when rows share an offset.
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if keep is None:
            count = wide.new_full((), wide.shape[0])
        else:
            wide, count = wide.masked_fill(~keep, 0), keep.sum().to(wide.dtype)
        mean = wide.sum(0) / count
        centred = wide - mean
        if keep is not None:
            centred = centred.masked_fill_(~keep, 0)
        ctx.save_for_backward(rows, keep, mean, count)
        return centred.square_().sum() / count

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, keep, mean, count = ctx.saved_tensors
        out = (rows - mean) * (2 * grad / count)
        return (out if keep is None else out.masked_fill_(~keep, 0)).to(rows.dtype), None


def club(
    y: Tensor,
    mask: Tensor | None = None,
    *,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """CLUB without a network, over all pairs, in O(M d).

    ``mean_ij 1/2 ||y_i - y_j||^2 = mean_m ||y_m - mean(y)||^2``, exactly.

    It is the trace of the biased covariance, the expectation of :func:`club_sampled`, and carries no sampling noise. It
    depends on y alone: see :class:`infobert_fast.CLUBv2` for what it bounds.

    Args:
        y: ``[..., d]`` rows of any float dtype.
        mask: ``[...]``, 1 where a row counts, 0 elsewhere; all rows where None. A masked row may hold anything, NaN
            too.
        implementation, validate: see :mod:`infobert_fast.functional`; mask values are read on a CPU unless False.

    Returns:
        A scalar, float32 for half-precision rows; gradient ``2/M (y_m - mean)``.

    Raises:
        ValueError: for a mask of another shape or of other values, or no rows. A mask that counts no row gives NaN
            where its values are not read.

    Source: CLUB (Cheng et al. 2020) as used by InfoBERT, section 3.2.
    """
    rows, flat = _rows(y, mask, validate)
    chosen = choose(implementation, y, kernel=True)
    if chosen == "reference":
        return reference.club(y, mask)
    if chosen == "triton":
        from infobert_fast.kernels import club as kernels

        return kernels.club(rows, flat)
    return _Club.apply(rows, _column(flat))


def club_sampled(
    y: Tensor,
    index: Tensor,
    mask: Tensor | None = None,
    *,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """Sampled CLUB ``mean_m 1/2 ||y_m - y_index[m]||^2``; its expectation over uniform ``index`` is :func:`club`.

    Args:
        y: ``[..., d]``.
        index: int64, one row number of the flattened y for each row (:func:`sample_rows` draws them).
        mask: ``[...]``, 1 where a row m counts; ``index`` must point to counted rows itself.
        implementation, validate: as in :func:`club`.

    Raises:
        TypeError, ValueError, IndexError: for an index or mask that does not fit.
    """
    rows, flat = _rows(y, mask, validate)
    index = index.reshape(-1)
    checks.index("index", index, rows.shape[0], "y", rows.device, validate=validate)
    if index.shape[0] != rows.shape[0]:
        raise ValueError(f"`index` holds {index.shape[0]} entries and `y` {rows.shape[0]} rows; give one for each row")
    chosen = choose(implementation, y, kernel=True)
    if chosen == "reference":
        return reference.club_sampled(y, index, mask)
    if chosen == "triton":
        from infobert_fast.kernels import sampled_club

        return sampled_club.club_sampled(rows, index, flat)
    keep = _column(flat)
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    difference = wide - F.embedding(index, wide)  # not wide[index]: its gradient differs from run to run
    if keep is None:
        return difference.square().sum() / (2 * wide.shape[0])
    difference = torch.where(keep, difference, 0)
    return difference.square().sum() / (2 * keep.sum())


def sample_rows(mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each position of ``mask`` ``[...]`` a flat row number drawn uniformly, with replacement, among the true ones.

    The k-th true row is found by a stable sort, so that nothing is read on the host.
    """
    flat = mask.reshape(-1).bool()
    true_rows = torch.argsort(~flat, stable=True)
    uniform = torch.rand(flat.shape, device=flat.device, dtype=torch.float64, generator=generator)
    return true_rows[(uniform * flat.sum()).to(torch.int64)]


def _rows(y: Tensor, mask: Tensor | None, validate: bool | None) -> tuple[Tensor, Tensor | None]:
    """Flatten leading dimensions, of the mask too."""
    if y.dim() < 2:
        raise ValueError(f"`y` has shape {list(y.shape)}; it must be [..., d], rows of features: unsqueeze it")
    if mask is not None and mask.shape != y.shape[:-1]:
        raise ValueError(f"`mask` has shape {list(mask.shape)}; the rows of `y` make it {list(y.shape[:-1])}")
    rows = y.reshape(-1, y.shape[-1])
    checks.matrix("y", rows)
    if mask is None:
        return rows, None
    checks.agree("mask", mask, "y", y, dtype=False)
    if checks.values_readable(mask, validate):
        checks.zeros_and_ones("mask", mask)
        if not bool(mask.any()):
            raise ValueError("`mask` is all zero; an estimate needs at least one row: skip the call for an empty batch")
    return rows, mask.reshape(-1)


def _column(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.bool().unsqueeze(1)
