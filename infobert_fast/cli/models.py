"""The models that commands only read: that they are trained for the task, and what their outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedConfig

from infobert_fast.data.corpora import fits
from infobert_fast.data.labels import fold
from infobert_fast.data.source import Source
from infobert_fast.data.tasks import NLI, QUESTION_ANSWERING, TASKS
from infobert_fast.training.models.critic import load_without_critic

__all__ = ["MODEL_LABELS", "check_head", "load_model", "name_outputs", "task_for"]

MODEL_LABELS = "what the model's outputs mean, in their order, where its own names do not tell"


def load_model(name: str, labels: Sequence[str] | None = None, *, questions: bool = False) -> Any:
    """A fine-tuned model in float32 on the device at hand, its outputs named by ``labels`` where given.

    Raises:
        ValueError: for a model without the head that is needed: transformers would put a random one on it.
    """
    check_head(AutoConfig.from_pretrained(name), questions=questions)
    auto = AutoModelForQuestionAnswering if questions else AutoModelForSequenceClassification
    model = load_without_critic(auto, name, dtype=torch.float32)
    name_outputs(model.config, labels)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def check_head(config: PreTrainedConfig, *, questions: bool = False, task: str = "the task") -> None:
    """Refuse a model that is not trained to answer questions, or to classify."""
    head = "ForQuestionAnswering" if questions else "ForSequenceClassification"
    if config.architectures and not any(name.endswith(head) for name in config.architectures):
        raise ValueError(
            f"the model is a {config.architectures[0]}, and {task} needs one ending in {head}: train it first"
        )


def name_outputs(config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
    """Let a configuration say what the model's outputs mean. Raises ``ValueError`` for another number of labels."""
    if labels is None:
        return
    if len(labels) != config.num_labels:
        raise ValueError(f"`model_labels` was {list(labels)}; the model has {config.num_labels} outputs: name each")
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def task_for(config: PreTrainedConfig, sources: Sequence[Source]) -> str:
    """What a model does, by its head and its labels; where several tasks have these, by the first set's columns."""
    asking = next((source for source in sources if source.task is None), None)
    if asking is None:
        return str(sources[0].task)
    candidates = _tasks_of(config)
    if len(candidates) > 1:
        fitting = [name for name in candidates if fits(asking, TASKS[name])]
        if len(fitting) != 1:
            raise ValueError(
                f"the model's labels are those of {', '.join(candidates)}, and the columns of {asking.where} fit "
                f"{', '.join(fitting) or 'none of them'}: say which it is, --task {(fitting or candidates)[0]}"
            )
        return fitting[0]
    return candidates[0]


def _tasks_of(config: PreTrainedConfig) -> list[str]:
    """The tasks that a model may be made for, by its head and the names of its outputs; NLI once, under its own name.

    Raises:
        ValueError: for outputs that no task has.
    """
    if any(name.endswith("ForQuestionAnswering") for name in config.architectures or []):
        return [QUESTION_ANSWERING]
    names = [str(name) for _, name in sorted((config.id2label or {}).items())]
    if len(names) == 1:
        return [name for name, task in TASKS.items() if not task.labels]
    found = [
        name
        for name, task in TASKS.items()
        if sorted(task.words.get(fold(label), -1) for label in names) == list(range(len(task.labels)))
    ]
    if not found:
        raise ValueError(
            f"the model's outputs are {names}, which are the classes of no task: name what it does, --task, and "
            "--model_labels, what they mean in their order"
        )
    return [name for name in found if not (name == "mnli" and NLI.name in found)]
