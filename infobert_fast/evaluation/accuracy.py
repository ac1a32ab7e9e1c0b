"""Accuracy of a fine-tuned model on clean and adversarial NLI sets, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast.data.labels import label_table
from infobert_fast.data.tasks import NLI, Task
from infobert_fast.data.tokenization import tokenize
from infobert_fast.evaluation.batches import padded_batches

__all__ = ["Accuracy", "evaluate", "label_order", "predict"]


@dataclass(frozen=True)
class Accuracy:
    """Right answers among ``count``, with the 95 % Wilson score interval."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.959963984540054, self.count, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return centre - half, centre + half


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: datasets.Dataset,
    *,
    max_length: int = 128,
    batch_tokens: int = 16_384,
    name: str = "",
    task: Task = NLI,
) -> np.ndarray:
    """The predicted index into ``task.labels`` for each example, in the dataset's order; for regression the number.

    The model's own label order is honoured by the names in its configuration.

    Raises:
        ValueError: for a model that does not tell the task's classes apart.
    """
    order = label_order(model, task) if task.labels else None
    tokens = tokenize(dataset, tokenizer, max_length, task=task)
    inputs = tokens.select_columns([key for key in tokens.column_names if key not in ("length", "labels")])
    predictions = np.empty(len(tokens), dtype=np.float64 if order is None else np.int64)
    for indices, batch in padded_batches(model, tokenizer, inputs, list(tokens["length"]), batch_tokens, name=name):
        logits = model(**batch).logits
        predictions[indices] = (
            logits[:, 0].float().cpu().numpy() if order is None else order[logits.argmax(-1).cpu().numpy()]
        )
    return predictions


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, datasets.Dataset],
    *,
    max_length: int = 128,
    batch_tokens: int = 16_384,
) -> dict[str, Accuracy]:
    """The accuracy on each corpus, by its name. Raises as :func:`predict`."""
    results = {}
    for name, dataset in corpora.items():
        predictions = predict(model, tokenizer, dataset, max_length=max_length, batch_tokens=batch_tokens, name=name)
        results[name] = Accuracy(int((predictions == np.array(dataset["label"])).sum()), len(dataset))
    return results


def label_order(model: PreTrainedModel, task: Task = NLI) -> np.ndarray:
    """Our label index for each of the model's outputs. Raises ``ValueError`` where its labels are not the task's."""
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    labels = task.labels
    if len(names) != len(labels):
        raise ValueError(
            f"the model has {len(names)} labels, {names}; {task.name} has {', '.join(labels)}: fine-tune it on "
            f"{task.name} first, or name its own task"
        )
    if all(name.startswith("LABEL_") for name in names):
        return np.arange(len(labels))
    table = label_table(None, names, task.words)
    if sorted(table.values()) != list(range(len(labels))):
        raise ValueError(
            f"the model's labels are {names}; they must be {', '.join(labels)}, in any order: set `id2label`"
        )
    return np.array([table[str(i)] for i in range(len(labels))])
