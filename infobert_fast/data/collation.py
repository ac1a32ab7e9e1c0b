"""From sentence pairs to padded batches, with the token counts kept on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")


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


def _encode(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    encoded = tokenizer(
        batch["premise"],
        batch["hypothesis"],
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,  # nothing is padded yet, so it would be all ones
    )
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]], "labels": batch["label"]}


@dataclass
class NliCollator:
    """Pad tokenized examples to the longest of the batch (or a multiple above it).

    Returns ``input_ids`` (first, because accelerate reads the batch size off the first tensor), ``attention_mask``,
    ``token_type_ids`` where the examples have them, ``labels``, all int64 ``[batch, length]`` or ``[batch]``, and
    ``lengths``: a list of plain integers, the tokens of each sentence pair without padding. The list stays on the host
    when the batch moves to a device, so that anchors and pairs are counted without a synchronisation.

    Raises ``ValueError`` for an empty batch, an example without ids or label, and for masks as
    :func:`check_attention_mask` does; each names the example's position in the batch.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | list[int]]:
        if not examples:
            raise ValueError("examples is empty; a batch needs at least one tokenized example")
        for position, example in enumerate(examples):
            if missing := {"input_ids", "labels"} - set(example):
                raise ValueError(f"example {position} of the batch lacks {sorted(missing)}; tokenize the dataset first")
            if differing := {key for key in _PER_TOKEN if (key in example) != (key in examples[0])}:
                raise ValueError(
                    f"example {position} of the batch differs from example 0 in having {sorted(differing)}"
                )
            if len(example.get("attention_mask", example["input_ids"])) != len(example["input_ids"]):
                raise ValueError(
                    f"example {position} of the batch has an attention_mask of another length than input_ids"
                )
        padded = pad_without_fast_tokenizer_warning(
            self.tokenizer,
            [{key: example[key] for key in _PER_TOKEN if key in example} for example in examples],
            padding="longest",
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors="pt",
        )
        check_attention_mask(padded["attention_mask"])
        batch = {key: padded[key] for key in _PER_TOKEN if key in padded}
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return {**batch, "lengths": batch["attention_mask"].sum(dim=1).tolist()}


def check_attention_mask(mask: torch.Tensor) -> None:
    """Check that ``mask`` is ``[batch, length]``, of zeros and ones only, with a token in every sentence.

    Reads the values, so on a device it waits for them: meant for the host. Raises ``ValueError`` otherwise.
    """
    if mask.dim() != 2:
        raise ValueError(f"attention_mask has the shape {list(mask.shape)}; it must be [batch, length]")
    if len(strange := ((mask != 0) & (mask != 1)).nonzero()):
        row, column = strange[0].tolist()
        value = mask[row, column].item()
        raise ValueError(
            f"attention_mask of example {row} is {value} at token {column}; it must be 1 for tokens, 0 for padding"
        )
    if len(hidden := (mask == 0).all(dim=1).nonzero()):
        rows = hidden.flatten().tolist()
        raise ValueError(f"attention_mask of examples {rows} is all 0; every example needs at least one token")
