"""The classifier on top: its labels, and their order where a checkpoint has another than ours."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from infobert_fast.data.labels import fold
from infobert_fast.data.tasks import Task

__all__ = ["head_order", "reorder_head", "set_labels"]


def head_order(config: PreTrainedConfig, task: Task) -> list[int] | None:
    """For each of the task's labels, the output that the checkpoint has for it; None where its labels are others.

    ``LABEL_0``, ``LABEL_1``, ... and names of which one is unknown tell nothing: None.
    """
    names = [name for _, name in sorted((config.id2label or {}).items())]
    found = [task.words.get(fold(name), -1) for name in names]
    if sorted(found) != list(range(len(task.labels))):
        return None
    return [found.index(label) for label in range(len(found))]


def set_labels(config: PreTrainedConfig, task: Task) -> None:
    """Give a model's configuration the task's labels: one output and a squared error for regression."""
    if task.labels:
        config.num_labels = len(task.labels)
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {word: index for index, word in enumerate(task.labels)}
    else:
        config.num_labels = 1
    config.problem_type = "single_label_classification" if task.labels else "regression"


@torch.no_grad()
def reorder_head(model: PreTrainedModel, order: list[int]) -> None:
    """Permute the rows of the last linear layer so that output ``i`` is what output ``order[i]`` was.

    The model computes what it computed, under our label order: training starts from the checkpoint's knowledge of the
    task, and the saved folder has one order of labels whatever it started from.

    Raises:
        ValueError: where the layer is not the only one with as many outputs.
    """
    if order == list(range(len(order))):
        return
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == len(order)
    ]
    if len(layers) != 1:
        raise ValueError(
            f"`model` ({type(model).__name__}) has its labels in another order, and its classifier cannot be told "
            f"among {[name for name, _ in layers]} to be put into ours: reorder it and its "
            "`id2label`, or set `id2label` to LABEL_0, LABEL_1, ... for the head to be trained anew"
        )
    (_, layer), index = layers[0], torch.tensor(order, device=layers[0][1].weight.device)
    layer.weight.copy_(layer.weight[index])
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[index])
