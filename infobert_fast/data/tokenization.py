"""From texts and pairs to token ids; padding is left to transformers' collators."""

from __future__ import annotations

from typing import Any, TypeVar

import datasets
from transformers import PreTrainedTokenizerBase

from infobert_fast.data.cache import fingerprint, tokenizer_key
from infobert_fast.data.tasks import NLI, Task

__all__ = ["check_max_length", "check_padding", "tokenize"]

AnyDataset = TypeVar("AnyDataset", datasets.Dataset, datasets.IterableDataset)


def tokenize(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 128,
    num_proc: int | None = None,
    *,
    task: Task = NLI,
) -> AnyDataset:
    """Tokenize a task's corpus into ``input_ids``, ``token_type_ids`` (if the model has them), ``length``, ``labels``.

    Nothing is padded here; pairs longer than ``max_length`` tokens lose words of the longer text first. The result
    is cached by ``datasets`` under a name made of the data, the tokenizer's content, ``max_length``, the columns, this
    package's data code and the libraries' versions, so that a second run, in this process or another, reads it back,
    and a changed one does not. A streamed dataset is tokenized as it is read. ``length`` (tokens, special ones
    included) is the column by which transformers groups batches:
    ``TrainingArguments(train_sampling_strategy="group_by_length")``.

    Raises ``ValueError`` for missing columns and for a ``max_length`` that leaves no room for the texts.
    """
    names = list(dataset.column_names or [*task.texts, "label"])
    if missing := {*task.texts, "label"} - set(names):
        raise ValueError(f"dataset lacks the columns {sorted(missing)}; it has {names}; use load_nli")
    check_max_length(max_length, tokenizer, len(task.texts))
    settings: dict[str, Any] = {"texts": list(task.texts), "max_length": max_length}
    options: dict[str, Any] = {}
    if isinstance(dataset, datasets.Dataset):
        key = fingerprint("tokens", dataset._fingerprint, tokenizer_key(tokenizer), settings)
        options = {"num_proc": num_proc, "new_fingerprint": key, "desc": "Tokenizing"}
    return dataset.map(
        _encode, batched=True, fn_kwargs={"tokenizer": tokenizer, **settings}, remove_columns=names, **options
    )


def check_max_length(max_length: int, tokenizer: PreTrainedTokenizerBase, texts: int) -> None:
    """Refuse a length in which one text, or two, would have no room beside the special tokens."""
    shortest = tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts
    if max_length < shortest:
        what = "a pair" if texts == 2 else "a text"
        raise ValueError(
            f"`max_length` was {max_length}; {what} takes at least {shortest} tokens, special ones included: raise it"
        )


def check_padding(tokenizer: PreTrainedTokenizerBase, argument: str, *, left: bool = False) -> None:
    """Refuse a tokenizer that cannot pad, or pads where the token stands that stands for the sentence.

    ``left`` says that the model does not read a sentence at its first token, so that padding may stand there.
    """
    where = f"`{argument}` was {tokenizer.name_or_path}, whose tokenizer"
    if tokenizer.padding_side != "right" and not left:
        raise ValueError(
            f"{where} pads on the {tokenizer.padding_side}; a sentence must begin at its first token: set "
            f'"padding_side": "right" in its tokenizer_config.json'
        )
    if tokenizer.pad_token is None:
        raise ValueError(
            f"{where} has no padding token, without which sentences of several lengths make no batch: set "
            f'"pad_token" in its tokenizer_config.json'
        )


def _encode(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int
) -> dict[str, list[Any]]:
    encoded = tokenizer(
        *(batch[text] for text in texts),
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,  # nothing is padded yet, so it would be all ones
    )
    return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]], "labels": batch["label"]}
