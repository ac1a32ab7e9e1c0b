"""What a fine-tuned model predicts on clean and adversarial sets, and its accuracy with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast.data.labels import fold
from infobert_fast.data.tasks import NLI, Task
from infobert_fast.data.tokenization import tokenize
from infobert_fast.evaluation.batches import padded_batches

__all__ = ["Accuracy", "Predictions", "evaluate", "label_order", "output_order", "predict", "predictions"]


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


@dataclass(frozen=True)
class Predictions:
    """Of each example the predicted class, ``[n]``, and the probability of each class, ``[n, classes]`` in float64.

    For regression the classes are numbers, and there are no probabilities.
    """

    values: np.ndarray
    probabilities: np.ndarray | None


def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: datasets.Dataset, **settings: Any
) -> np.ndarray:
    """The predicted index into ``task.labels`` for each example, or the number: :func:`predictions` without more."""
    return predictions(model, tokenizer, dataset, **settings).values


@torch.inference_mode()
def predictions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: datasets.Dataset,
    *,
    max_length: int = 128,
    batch_tokens: int = 16_384,
    name: str = "",
    task: Task = NLI,
) -> Predictions:
    """What a model predicts for each example, in the dataset's order.

    The model's own label order is honoured by the names in its configuration. Where a model tells more classes apart
    than the task (three relations on HANS, which has two), its answer is its most probable output and counts as the
    class that this falls into; that class's probability is the sum over its outputs.

    Raises:
        ValueError: for a model that does not tell the task's classes apart, and for logits that are not finite.
    """
    order = label_order(model, task) if task.labels else None
    tokens = tokenize(dataset, tokenizer, max_length, task=task)
    inputs = tokens.select_columns([key for key in tokens.column_names if key not in ("length", "labels")])
    logits = np.empty((len(tokens), 1 if order is None else len(order)))
    for indices, batch in padded_batches(model, tokenizer, inputs, list(tokens["length"]), batch_tokens, name=name):
        logits[indices] = model(**batch).logits.double().cpu().numpy()
    if not np.isfinite(logits).all():
        number = int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
        raise ValueError(f"the model's logits of example {number + 1} of {name or 'the set'} are {logits[number]}")
    if order is None:
        return Predictions(logits[:, 0], None)
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    probabilities = np.zeros((len(tokens), len(task.labels)))
    for output, label in enumerate(order):
        probabilities[:, label] += shares[:, output]
    return Predictions(order[logits.argmax(1)], probabilities)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Mapping[str, datasets.Dataset],
    **settings: Any,
) -> dict[str, Accuracy]:
    """The accuracy on each corpus, by its name; the settings and errors are those of :func:`predictions`."""
    results = {}
    for name, dataset in corpora.items():
        found = predict(model, tokenizer, dataset, name=name, **settings)
        results[name] = Accuracy(int((found == np.array(dataset["label"])).sum()), len(dataset))
    return results


def label_order(model: PreTrainedModel, task: Task = NLI) -> np.ndarray:
    """The task's class of each of the model's outputs: several outputs may fall into one where the task says so.

    Raises:
        ValueError: where the model's names are not the task's, or say nothing (``LABEL_0``, ...).
    """
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    labels = task.labels
    advice = f"name them in their order, by --model_labels or `model.config.id2label`, in words of {', '.join(labels)}"
    if names and all(name.startswith("LABEL_") for name in names):
        raise ValueError(f"the model's outputs are called {', '.join(names)}, which says nothing of them: {advice}")
    words = task.words
    if len(names) > len(labels) and task.finer:
        words = {**words, **task.finer}
    elif len(names) != len(labels):
        raise ValueError(
            f"the model has {len(names)} labels, {names}; {task.name} has {', '.join(labels)}: fine-tune it on "
            f"{task.name} first, or name its own task"
        )
    found = [words.get(fold(name)) for name in names]
    merged = len(names) > len(labels)
    if None in found or set(found) != set(range(len(labels))) or (merged and len({*map(fold, names)}) < len(names)):
        raise ValueError(f"the model's labels are {names}; they must be {', '.join(labels)}, in any order: {advice}")
    return np.array(found)


def output_order(model: PreTrainedModel, task: Task = NLI) -> np.ndarray:
    """The model's output for each of the task's classes, whose loss can be taken.

    Raises:
        ValueError: as :func:`label_order`, and where several outputs fall into one class.
    """
    order = label_order(model, task)
    if len(order) > len(task.labels):
        raise ValueError(
            f"the model tells {len(order)} classes apart and {task.name} {len(task.labels)}, so that no output's loss "
            "is that of a class: use a set of the model's own task"
        )
    return np.argsort(order)
