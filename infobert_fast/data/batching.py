"""Batches by a budget of tokens instead of a number of sentences: equal work, hardly any padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Sampler

from infobert_fast import checks

__all__ = ["TokenBatches", "token_lengths"]


def token_lengths(dataset: Any, column: str = "length") -> list[int]:
    """The tokens of each example, as a list: from the column where the dataset has it, else from its ``input_ids``.

    A column of ``datasets`` is read from disk at every access of an element; transformers' length grouping makes a few
    such accesses for each example and epoch.
    """
    if isinstance(dataset, datasets.Dataset) and column in dataset.column_names:
        return list(dataset[column][:])
    return [len(example["input_ids"]) for example in dataset]


class TokenBatches(Sampler[list[int]]):
    """One rank's micro-batches of an epoch: similar lengths, at most ``batch_tokens`` tokens each, padding included.

    Examples are sorted by length, those of one length in random order, and cut so that ``sentences * longest`` stays
    within the budget; the batches are then shuffled, and each rank takes every ``ranks``-th. Nothing is dropped or
    repeated: to give all ranks the same number of batches, the ones with the most sentences are halved. Where the cuts
    lie depends on the lengths alone, so every epoch has the same number of batches.

    A function of ``seed`` and epoch: a resumed run repeats it. What it costs: a batch holds sentences of one length,
    or nearly, and batches hold different numbers of sentences.

    Args:
        lengths: tokens of each example.
        batch_tokens: the budget, of one rank's micro-batch.
        ranks, rank: how many processes share the batches, and which one this is.
        seed: of the order.

    Raises:
        ValueError: for a budget that an example exceeds, or fewer examples than ranks.
    """

    def __init__(
        self, lengths: Sequence[int], batch_tokens: int, *, ranks: int = 1, rank: int = 0, seed: int = 0
    ) -> None:
        checks.positive_integer("batch_tokens", batch_tokens)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if len(self._lengths) < ranks:
            raise ValueError(
                f"`train_dataset` holds {len(self._lengths)} examples; {ranks} ranks need one each at least"
            )
        if (longest := int(self._lengths.max())) > batch_tokens:
            raise ValueError(
                f"`batch_tokens` was {batch_tokens}; the longest example has {longest} tokens: raise it, or lower "
                f"`max_length`"
            )
        self._ranks, self._rank, self._seed, self.epoch = ranks, rank, seed, 0
        self._bounds = _cut(np.sort(self._lengths)[::-1], batch_tokens, ranks)

    def set_epoch(self, epoch: int) -> None:
        """Order the next iteration as this epoch's."""
        self.epoch = epoch

    @property
    def sampler(self) -> TokenBatches:
        """Itself: where accelerate, having skipped the batches before a resumed step, looks for ``set_epoch``."""
        return self

    def __len__(self) -> int:
        return (len(self._bounds) - 1) // self._ranks

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed, self.epoch])
        order = random.permutation(len(self._lengths))
        order = order[np.argsort(-self._lengths[order], kind="stable")]
        for number in random.permutation(len(self._bounds) - 1)[self._rank :: self._ranks]:
            yield order[self._bounds[number] : self._bounds[number + 1]].tolist()


def _cut(descending: np.ndarray, batch_tokens: int, ranks: int) -> np.ndarray:
    """Where batches begin and the last one ends, in examples sorted by descending length; a multiple of ``ranks``."""
    bounds = [0]
    while bounds[-1] < len(descending):
        # The first example of a batch is its longest, which all others are padded to.
        bounds.append(min(bounds[-1] + batch_tokens // max(int(descending[bounds[-1]]), 1), len(descending)))
    while (len(bounds) - 1) % ranks:
        largest = int(np.argmax(np.diff(bounds)))
        if bounds[largest + 1] - bounds[largest] == 1:
            raise ValueError(
                f"`batch_tokens` was {batch_tokens}, at which every batch is one example; {ranks} ranks cannot share "
                f"{len(descending)} of them evenly: raise it"
            )
        bounds.insert(largest + 1, (bounds[largest] + bounds[largest + 1]) // 2)
    return np.asarray(bounds)
