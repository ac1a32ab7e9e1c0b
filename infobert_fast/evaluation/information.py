"""How much a trained encoder's features tell: the two mutual-information bounds, measured after training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast import functional
from infobert_fast.data.tasks import NLI, Task
from infobert_fast.data.tokenization import tokenize
from infobert_fast.estimators import InfoNCE
from infobert_fast.evaluation.accuracy import output_order
from infobert_fast.training.look import check_sight, settle_feature
from infobert_fast.training.models.forward import Batch, PerturbedModel

__all__ = ["Information", "measure_each", "measure_information"]

NOT_FOR_THE_MODEL = ("length", "example", "starts", "ends", "wider")


@dataclass(frozen=True)
class Information:
    """Bounds in nats: ``upper`` on I(T; X), features and input; ``lower`` on I(T_k; Z), anchors and their sentence.

    ``lower_others`` is the same bound for the tokens that are no anchors, where it was asked for.
    """

    upper: float
    lower: float
    lower_others: float | None = None


@dataclass(frozen=True)
class _Batch:
    tokens: Tensor  # [tokens, hidden], the embedding block's rows
    sentences: Tensor  # [batch, hidden]
    anchors: Tensor  # [anchors], numbers of rows
    others: Tensor  # [tokens - anchors], likewise
    rows: Tensor  # [batch * length, hidden]


def measure_information(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: datasets.Dataset,
    test: datasets.Dataset,
    **settings: Any,
) -> Information:
    """:func:`measure_each` on one set."""
    return measure_each(model, tokenizer, train, {"test": test}, **settings)["test"]


def measure_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: datasets.Dataset,
    tests: Mapping[str, datasets.Dataset],
    *,
    cl: float = 0.5,
    ch: float = 0.9,
    batch_size: int = 32,
    max_length: int = 128,
    epochs: int = 10,
    critic_lr: float = 1e-3,
    seed: int = 0,
    task: Task = NLI,
    others: bool = False,
) -> dict[str, Information]:
    """Measure both bounds on the features of each test set, so that differently trained models can be compared.

    Sets are corpora of ``task``, or already token ids with what the model's loss needs (windows of questions).
    The upper bound is CLUB over the embedding block's token rows, exactly. The lower bound is InfoNCE with a **fresh**
    critic, fitted for ``epochs`` passes over the features of ``train`` with the model frozen and evaluated on those of
    the test sets, all pairs of a batch being negatives: a model trained with a critic of its own has no advantage.
    With ``others`` a second critic, fitted likewise, measures the tokens that are no anchors.

    Raises:
        ValueError: where no token is an anchor, and for a model that does not tell the task's classes apart.
    """

    perturbed, settled = PerturbedModel(model.eval()), False

    def features(dataset: datasets.Dataset) -> Iterator[_Batch]:
        nonlocal settled
        ready = "input_ids" in dataset.column_names
        tokens = dataset if ready else tokenize(dataset, tokenizer, max_length, task=task)
        output_of = None if ready or not task.labels else torch.from_numpy(output_order(model, task))
        for inputs in _batches(tokens, tokenizer, batch_size):
            if output_of is not None:
                inputs["labels"] = output_of[inputs["labels"]]
            inputs = {name: value.to(model.device) for name, value in inputs.items()}
            batch = Batch(inputs, inputs["attention_mask"].sum(1).tolist())
            if not settled:
                perturbed.feature, settled = settle_feature(perturbed, model, batch, None), True
                check_sight(perturbed, model, batch)
            yield _features(perturbed, batch, cl, ch)

    try:
        return _measure(features, train, tests, epochs, critic_lr, seed, others)
    finally:
        perturbed.remove()


def _measure(
    features: Callable[[datasets.Dataset], Iterator[_Batch]],
    train: datasets.Dataset,
    tests: Mapping[str, datasets.Dataset],
    epochs: int,
    critic_lr: float,
    seed: int,
    others: bool,
) -> dict[str, Information]:
    fitting = list(features(train))
    kinds = ("anchors", "others") if others else ("anchors",)
    critics = {kind: _fit(fitting, kind, epochs, critic_lr, seed) for kind in kinds}
    results = {}
    for name, test in tests.items():
        held_out = list(features(test))
        with torch.no_grad():
            upper = functional.club(torch.cat([batch.tokens for batch in held_out]))
            lower = {
                kind: float(torch.stack([_lower_bound(critic, batch, kind) for batch in held_out]).mean())
                for kind, critic in critics.items()
            }
        results[name] = Information(float(upper), lower["anchors"], lower.get("others"))
    return results


def _fit(fitting: list[_Batch], kind: str, epochs: int, lr: float, seed: int) -> InfoNCE:
    """A critic fitted on one kind of tokens: a function of the features and the seed."""
    width = fitting[0].tokens.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        critic = InfoNCE(width, width).to(fitting[0].tokens.device)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=lr)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for i in order.permutation(len(fitting)):
            optimizer.zero_grad()
            (-_lower_bound(critic, fitting[i], kind)).backward()
            optimizer.step()
    return critic


def _batches(
    tokens: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Whole batches in the dataset's order: a smaller one would have a lower ceiling, the logarithm of its pairs."""
    tokens = tokens.remove_columns([name for name in NOT_FOR_THE_MODEL if name in tokens.column_names])
    collate = DataCollatorWithPadding(tokenizer)
    size = min(batch_size, len(tokens))
    for start in range(0, len(tokens) - size + 1, size):
        yield collate([tokens[i] for i in range(start, start + size)])


def _features(model: PerturbedModel, batch: Batch, cl: float, ch: float) -> _Batch:
    """One batch's rows, anchors chosen by the gradient of the task loss, without dropout."""
    mask = batch.attention_mask
    delta = model.words.zeros(mask.shape, mask.device).requires_grad_()
    states = model(model.bare, batch, delta)
    (grad,) = torch.autograd.grad(states.task_loss, delta)
    anchors = functional.anchor_indices(grad, mask, cl, ch)
    if not len(anchors):
        raise ValueError(f"no token of a batch is an anchor for `cl` {cl} and `ch` {ch}; widen the window")
    embedded = states.embedded.detach()
    rest = mask.flatten().bool()
    rest[anchors] = False
    return _Batch(
        tokens=embedded[mask.bool()],
        sentences=states.sentence.detach(),
        anchors=anchors,
        others=rest.nonzero().flatten(),
        rows=embedded.flatten(0, 1),
    )


def _lower_bound(critic: InfoNCE, batch: _Batch, kind: str) -> Tensor:
    chosen: Tensor = getattr(batch, kind)
    length = len(batch.rows) // len(batch.sentences)
    bound: Tensor = critic(batch.rows[chosen], batch.sentences, pair_index=chosen // length)
    return bound
