"""Evaluation and the word-substitution attack on a small model: examples a second, and many texts at once or one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForSequenceClassification

from infobert_fast.benchmarks.harness.measuring import DEVICE
from infobert_fast.data.demo import ATTRIBUTES, OBJECTS, demo_corpus, demo_tokenizer
from infobert_fast.data.labels import LABELS
from infobert_fast.evaluation.accuracy import predict
from infobert_fast.evaluation.attack import Limits, Outcome, attack, run
from infobert_fast.evaluation.recipes import substitutions

EXAMPLES, ATTACKED, LONGEST = (600, 48, 128) if DEVICE == "cpu" else (2000, 96, 128)


class Trained(NamedTuple):
    """A model with random weights, large enough that words change its mind; its tokenizer and examples."""

    model: RobertaForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    examples: Dataset


@pytest.fixture(scope="module")
def trained():
    corpus = demo_corpus(600, EXAMPLES)
    tokenizer = demo_tokenizer(corpus)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LONGEST + 2,
        id2label=dict(enumerate(LABELS)),
        initializer_range=0.3,
    )
    return Trained(RobertaForSequenceClassification(config).to(DEVICE).eval(), tokenizer, corpus["test_clean"])


def padded(x: Trained) -> np.ndarray:
    """Batches of 32 in the data's order, every text padded to the longest length, as the published code does."""
    found = []
    for start in range(0, len(x.examples), 32):
        rows = x.examples[start : start + 32]
        batch = x.tokenizer(
            rows["premise"], rows["hypothesis"], padding="max_length", max_length=LONGEST, return_tensors="pt"
        )
        with torch.inference_mode():
            found.append(x.model(**batch.to(DEVICE)).logits.argmax(-1).cpu().numpy())
    return np.concatenate(found)


def ours(x: Trained) -> np.ndarray:
    return predict(x.model, x.tokenizer, x.examples, max_length=LONGEST)


PREDICTIONS: dict[str, Callable[[Trained], np.ndarray]] = {"padded": padded, "infobert-fast": ours}


@pytest.mark.parametrize("way", PREDICTIONS)
def test_predictions(measure, gate, trained, way):
    def check() -> None:
        assert (PREDICTIONS[way](trained) == padded(trained)).all(), "other predictions than the padded batches'"

    gate(("predictions", way), check)
    measure(lambda: PREDICTIONS[way](trained), examples=len(trained.examples))


WORDS = [OBJECTS, *(values for _, values in ATTRIBUTES.values())]
NEIGHBORS = {word: [other for other in group if other != word] for group in WORDS for word in group}


def attacked(x: Trained, most: int | None, concurrent: int) -> tuple[list[Outcome], int]:
    """The outcomes on the hypotheses, whose labels are the model's own answers, and how many forwards it took."""
    examples = x.examples.select(range(ATTACKED))
    premises, forwards = examples["premise"], 0

    def score(questions: Sequence[tuple[int, str]]) -> np.ndarray:
        nonlocal forwards
        found = []
        for start in range(0, len(questions), most or len(questions)):
            numbers, texts = zip(*questions[start : start + (most or len(questions))], strict=True)
            batch = x.tokenizer([premises[n] for n in numbers], list(texts), padding=True, return_tensors="pt")
            with torch.inference_mode():
                found.append(x.model(**batch.to(DEVICE)).logits.softmax(-1).cpu().numpy())
            forwards += 1
        return np.concatenate(found)

    labels = score(list(enumerate(examples["hypothesis"]))).argmax(1)
    runs = [
        attack(text, int(label), [substitutions(NEIGHBORS)], Limits())
        for text, label in zip(examples["hypothesis"], labels, strict=True)
    ]
    return [outcome for _, outcome in sorted(run(runs, score, concurrent=concurrent))], forwards


ATTACKS = {
    "a query a forward": functools.partial(attacked, most=1, concurrent=1),
    "a text at a time": functools.partial(attacked, most=256, concurrent=1),
    "infobert-fast": functools.partial(attacked, most=256, concurrent=256),
}


@pytest.fixture(scope="module")
def once(trained):
    """Each way's outcomes and forwards."""
    return {way: run_all(trained) for way, run_all in ATTACKS.items()}


@pytest.mark.parametrize("way", ATTACKS)
def test_attack(measure, gate, trained, once, way):
    """Texts attacked one after the other, every query a forward; then a text's queries together; then all texts'."""
    expected, _ = once["a query a forward"]
    outcomes, forwards = once[way]

    def check() -> None:
        assert outcomes == expected, "other outcomes than those of a query at a time"
        assert {outcome.status for outcome in expected} >= {"fooled", "robust"}, "the attacks all end alike"

    gate(("attack", way), check)
    measure(lambda: ATTACKS[way](trained), texts=ATTACKED, forwards=forwards)
