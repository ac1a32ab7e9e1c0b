"""What an attack asks of models, in batches by tokens: a classifier's probabilities, and how alike two texts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast.data.tasks import NLI, Task
from infobert_fast.evaluation.accuracy import label_order
from infobert_fast.evaluation.batches import padded_batches

__all__ = ["probabilities", "similarities"]


def probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    *,
    max_length: int = 128,
    batch_tokens: int = 16_384,
    task: Task = NLI,
) -> np.ndarray:
    """``[texts, labels]``, float64: of each text, or pair of texts, the probabilities of the task's classes.

    Where a model tells more classes apart than the task, a class has its most probable output's share: the greatest is
    then the class of the model's answer, as in :func:`infobert_fast.evaluation.accuracy.predictions`.

    Raises:
        ValueError: for a model that does not tell the task's classes apart, and for logits that are not finite.
    """
    order = label_order(model, task)
    rows = _rows(model, tokenizer, [list(part) for part in zip(*texts, strict=True)], max_length, batch_tokens)
    if not np.isfinite(rows).all():
        number = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ValueError(f"the model's logits of {texts[number]!r} are {rows[number]}")
    shares = np.exp(rows - np.logaddexp.reduce(rows, axis=1, keepdims=True))
    best = np.zeros((len(rows), len(task.labels)))
    for output, label in enumerate(order):
        best[:, label] = np.maximum(best[:, label], shares[:, output])
    return best / best.sum(1, keepdims=True)


def similarities(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_length: int = 128,
    batch_tokens: int = 16_384,
) -> np.ndarray:
    """``[pairs]``: the cosine of two texts' mean last hidden states, what sentence encoders are trained for."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    rows = _rows(encoder, tokenizer, [texts], max_length, batch_tokens)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    place = {text: i for i, text in enumerate(texts)}
    left, right = ([place[pair[side]] for pair in pairs] for side in (0, 1))
    return (rows[left] * rows[right]).sum(1)


@torch.inference_mode()
def _rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    columns: list[list[str]],
    max_length: int,
    batch_tokens: int,
) -> np.ndarray:
    """A classifier's logits, or the mean last hidden state of an encoder without a head; one row a text."""
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    inputs = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    lengths = [len(one["input_ids"]) for one in inputs]
    rows: list[Tensor | None] = [None] * len(inputs)
    for indices, batch in padded_batches(model, tokenizer, inputs, lengths, batch_tokens):
        output = model(**batch)
        if hasattr(output, "logits"):
            values = output.logits
        else:
            mask = batch["attention_mask"].unsqueeze(-1)
            values = (output.last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        for index, row in zip(indices, values.double().cpu(), strict=True):
            rows[index] = row
    return torch.stack(rows).numpy()  # type: ignore[arg-type]
