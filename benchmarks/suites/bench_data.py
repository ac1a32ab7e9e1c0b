"""From texts to batches: tokenization, collation, and the order of an epoch, on the generated corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler

from infobert_fast.data.batching import TokenBatches
from infobert_fast.data.demo import demo_corpus, demo_tokenizer
from infobert_fast.data.tokenization import tokenize

EXAMPLES, BATCH, LONGEST = 4000, 32, 128
EPOCH = 200_000  # lengths whose batches are planned


@pytest.fixture(scope="module")
def corpus():
    return demo_corpus(EXAMPLES, 3)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return demo_tokenizer(corpus)


def one_by_one(corpus: Any, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """An example a call, padded to the longest length allowed, as published feature builders do."""
    return [
        tokenizer(row["premise"], row["hypothesis"], padding="max_length", max_length=LONGEST)["input_ids"]
        for row in corpus["train"]
    ]


TOKENIZERS: dict[str, Callable[..., Any]] = {
    "one by one": one_by_one,
    "infobert-fast": lambda corpus, tokenizer: tokenize(corpus["train"], tokenizer, LONGEST),
}


@pytest.mark.parametrize("way", TOKENIZERS)
def test_tokenization(measure, gate, corpus, tokenizer, way):
    def check() -> None:
        for padded, tokens in zip(one_by_one(corpus, tokenizer), tokenize(corpus["train"], tokenizer), strict=True):
            assert padded[: tokens["length"]] == tokens["input_ids"]
            assert set(padded[tokens["length"] :]) <= {tokenizer.pad_token_id}

    gate("tokenization", check)
    measure(lambda: TOKENIZERS[way](corpus, tokenizer), examples=EXAMPLES)


@pytest.mark.parametrize("way", ["padded to 128", "infobert-fast"])
def test_collation(measure, corpus, tokenizer, way):
    """All batches of 32 as tensors: padded to 128, or to each batch's longest."""
    fixed = {"padding": "max_length", "max_length": LONGEST} if way == "padded to 128" else {}
    collate = DataCollatorWithPadding(tokenizer, **fixed)
    rows = list(tokenize(corpus["train"], tokenizer).select_columns(["input_ids"]))
    tokens = 0

    def epoch() -> None:
        nonlocal tokens
        batches = [collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        tokens = sum(batch["input_ids"].numel() for batch in batches)

    epoch()
    measure(epoch, examples=EXAMPLES, tokens=tokens)


@pytest.mark.parametrize("way", ["length-grouped", "infobert-fast"])
def test_epoch(measure, gate, way):
    """The order of an epoch: transformers' grouping by length, or batches of at most 4,096 tokens."""
    lengths = np.random.default_rng(0).integers(8, LONGEST + 1, EPOCH).tolist()

    def order() -> list[int]:
        if way == "length-grouped":
            return list(LengthGroupedSampler(BATCH, lengths=lengths))
        return [i for batch in TokenBatches(lengths, BATCH * LONGEST) for i in batch]

    def check() -> None:
        assert sorted(order()) == list(range(EPOCH)), "not every example once"

    gate(("epoch", way), check)
    measure(order, examples=EPOCH)
