"""From sentence pairs to token ids; padding is left to transformers' collators."""

from __future__ import annotations

from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

__all__ = ["tokenize"]


def tokenize(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 128, num_proc: int | None = None
) -> datasets.Dataset:
    """Tokenize an NLI dataset into ``input_ids``, ``token_type_ids`` (if the model has them), ``length``, ``labels``.

    Nothing is padded here; pairs longer than ``max_length`` tokens lose words of the longer sentence first. The result
    is cached by ``datasets`` under a fingerprint of data, tokenizer and ``max_length``, so that a second run, in this
    process or another, reads it back. ``length`` (tokens, special ones included) is the column by which transformers
    groups batches: ``TrainingArguments(train_sampling_strategy="group_by_length")``.

    Raises ``ValueError`` for missing columns and for a ``max_length`` that leaves no room for two sentences.
    """
    if missing := {"premise", "hypothesis", "label"} - set(dataset.column_names):
        raise ValueError(f"dataset lacks the columns {sorted(missing)}; it has {dataset.column_names}; use load_nli")
    shortest = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if max_length < shortest:
        raise ValueError(f"max_length is {max_length}; a pair takes at least {shortest} tokens, special ones included")
    return dataset.map(
        _encode,
        batched=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=dataset.column_names,
        desc="Tokenizing",
    )


def _encode(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list[Any]]:
    encoded = tokenizer(
        batch["premise"],
        batch["hypothesis"],
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,  # nothing is padded yet, so it would be all ones
    )
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]], "labels": batch["label"]}
