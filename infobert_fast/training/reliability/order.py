"""The order of the training examples as a function of seed and epoch alone, so that a resumed run can repeat it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from infobert_fast.data.batching import TokenBatches

__all__ = ["EpochOrder", "SameOrder", "examples_of"]


class EpochOrder(Sampler[int]):
    """A length-grouped order drawn anew for each epoch from a generator of its own, the same on all ranks.

    The stock one draws from the default generator: resumed within an epoch it would draw another order, and ranks whose
    dropout has drawn differently would disagree about who sees which example.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Called by the dataloader at the start of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)


class SameOrder(TrainerCallback):
    """Tells the sampler its epoch. When batches are skipped on several ranks, accelerate's wrappers hide it from the
    Trainer, and a run resumed within a later epoch would see the first epoch's order.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(int(state.epoch or 0))


def examples_of(dataloader: Any, epoch: int, batch: int) -> list[int] | None:
    """The numbers in the training set of this rank's examples in a batch of an epoch; None where the order is not a
    function of the epoch, or the data have no numbers.
    """
    sampler: Any = getattr(dataloader, "batch_sampler", None)
    inner: Any = sampler
    while hasattr(inner, "batch_sampler"):
        inner = inner.batch_sampler
    if not isinstance(
        getattr(inner, "sampler", None), (EpochOrder, SeedableRandomSampler, SequentialSampler, TokenBatches)
    ):
        return None
    dataloader.set_epoch(epoch)
    return next(itertools.islice(iter(sampler), batch, None), None)
