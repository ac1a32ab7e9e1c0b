"""Statistics over all ranks of a distributed run, exact under gradients that are averaged over ranks.

The convention: every rank returns the value of the joint batch, and on rank r the gradient of ``R`` times r's own terms
of it, R being the number of ranks. DistributedDataParallel's mean over ranks then is the joint gradient, as it is for a
task loss that is a mean over a rank's sentences. Nothing is computed twice: a rank's own terms are its share of the
work. Where a term depends on other ranks' rows, their gradient goes back to the rank that owns them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from infobert_fast.kernels.once import first_order

__all__ = ["club_over_ranks", "exchange", "gather_rows", "mean_over_ranks"]


def exchange(*numbers: float) -> list[list[float]]:
    """This rank's numbers and the others', a list a rank, between hosts: it waits for the ranks, not for the device.

    Counts fix the shapes of what is exchanged on the device, so that they have to be known on the host; whatever
    depends on them cannot be captured in a CUDA graph.
    """
    own = torch.tensor(numbers, dtype=torch.float64)
    everyone = own.new_empty(dist.get_world_size(), len(numbers))
    dist.all_gather(list(everyone.unbind()), own, group=_hosts())
    return everyone.tolist()


@functools.lru_cache(maxsize=1)
def _hosts() -> dist.ProcessGroup:
    """All ranks, over their hosts; made by every rank at its first exchange."""
    return dist.new_group(backend="gloo")


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        # Collectives want equal sizes: pad to the longest, and cut afterwards.
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: rows.shape[0]] = rows
        everyone = rows.new_empty(len(counts), *padded.shape)
        dist.all_gather(list(everyone.unbind()), padded)
        return torch.cat([part[:n] for part, n in zip(everyone, counts, strict=True)])

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        parts = pad_sequence(list(grad.split(ctx.counts)), batch_first=True)
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, list(parts.unbind()))
        return own[: ctx.counts[dist.get_rank()]], None


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, rank by rank: ``[n, d]`` on each, ``[sum(counts), d]`` in all.

    The gradient of a row is summed over the ranks that used it. Every rank must call this, and its backward, though it
    has no row itself.

    Args:
        rows: this rank's, ``counts[rank]`` of them.
        counts: rows of each rank, the same list on all ranks and known on the host.

    Raises:
        ValueError: where ``counts`` does not hold an entry for each rank, or not this rank's number of rows.
        RuntimeError: where no process group is initialised.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group is initialised; call torch.distributed.init_process_group first")
    if len(counts) != dist.get_world_size() or counts[dist.get_rank()] != rows.shape[0]:
        raise ValueError(
            f"`counts` was {list(counts)} on rank {dist.get_rank()} of {dist.get_world_size()}, which holds "
            f"{rows.shape[0]} rows; it must give the number of rows of each rank"
        )
    gathered: Tensor = _GatherRows.apply(rows, counts)
    return gathered


def mean_over_ranks(share: Tensor) -> Tensor:
    """The mean of a scalar over ranks, the same bits on each; its gradient is that of this rank's own ``share``."""
    mean = share.detach().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size() + (share - share.detach())


class _ClubOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, keep: Tensor) -> Tensor:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).masked_fill(~keep, 0)
        sums = torch.cat([wide.sum(0), keep.sum().to(wide.dtype).reshape(1)])
        dist.all_reduce(sums)
        mean, count = sums[:-1] / sums[-1], sums[-1]
        total = (wide - mean).masked_fill_(~keep, 0).square_().sum()
        dist.all_reduce(total)
        ctx.save_for_backward(rows, keep, mean, count)
        return total / count

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, keep, mean, count = ctx.saved_tensors
        # The joint mean counts as a constant: its own gradient is a multiple of sum (y - mean), which is zero.
        out = (rows - mean) * (2 * dist.get_world_size() * grad / count)
        return out.masked_fill_(~keep, 0).to(rows.dtype), None


def club_over_ranks(y: Tensor, mask: Tensor | None = None) -> Tensor:
    """:func:`infobert_fast.functional.club` over the rows of all ranks, in the convention of this module.

    A sum of d + 1 numbers and one of a single number go over the wire, and none in the backward.

    Args:
        y: ``[..., d]`` rows of any float dtype; another number of them on each rank.
        mask: ``[...]``, 1 where a row counts; all rows where None.

    Raises:
        RuntimeError: where no process group is initialised.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group is initialised; call torch.distributed.init_process_group first")
    rows = y.reshape(-1, y.shape[-1])
    keep = (y.new_ones(y.shape[:-1]) if mask is None else mask).reshape(-1, 1).bool()
    bound: Tensor = _ClubOverRanks.apply(rows, keep)
    return bound
