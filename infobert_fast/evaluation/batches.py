"""Texts to a model in batches by tokens, longest first: how everything here that only reads a model feeds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["padded_batches", "token_batches"]


def padded_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[Any],
    lengths: Sequence[int],
    budget: int,
    *,
    name: str | None = None,
) -> Iterator[tuple[list[int], BatchEncoding]]:
    """The model, in evaluation mode, is to be shown these: numbers of tokenized inputs, and their padded batch on its
    device; see :func:`token_batches`. With a ``name``, under a progress bar where someone watches.
    """
    model.eval()
    collate: Any = DataCollatorWithPadding(tokenizer)
    quiet = True if name is None else None  # None: where no terminal is there
    with tqdm(total=len(lengths), desc=name, unit="texts", leave=False, disable=quiet) as progress:
        for indices in token_batches(lengths, budget):
            yield indices, collate([inputs[i] for i in indices]).to(model.device)
            progress.update(len(indices))


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut examples, longest first, into batches of at most ``budget`` tokens with padding (one example at least)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
