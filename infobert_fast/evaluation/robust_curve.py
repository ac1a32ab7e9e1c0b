"""Accuracy and loss against the size of a perturbation of the word embeddings: random, one ascent, or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast import checks, functional
from infobert_fast.evaluation.accuracy import Accuracy
from infobert_fast.evaluation.batches import padded_batches
from infobert_fast.evaluation.information import NOT_FOR_THE_MODEL
from infobert_fast.functional import NormType
from infobert_fast.training.look import untouched
from infobert_fast.training.models.perturbation import WordEmbeddings

__all__ = ["ATTACKS", "Attack", "Curve", "gradient_norms", "mean_token_norm", "robust_curve"]

Attack = Literal["random", "one-ascent", "pgd"]
ATTACKS: tuple[Attack, ...] = ("random", "one-ascent", "pgd")
SMALLEST = 1e-12  # of a gradient's norm, below which it has no direction


@dataclass(frozen=True)
class Curve:
    """What an attack does to each example at each radius.

    Args:
        radii: as the perturbation's norm, of a sentence under l2 and of an entry under linf.
        loss: ``[radii, examples]`` in nats (a squared error for regression), the largest that the attack met.
        right: ``[radii, examples]``, whether every answer met was right; None for regression.
    """

    radii: tuple[float, ...]
    loss: np.ndarray
    right: np.ndarray | None

    def accuracy(self, i: int) -> Accuracy:
        """Of the i-th radius, with its 95 % interval. Raises ``ValueError`` for regression."""
        if self.right is None:
            raise ValueError("a regression has no right answers: read `loss`")
        return Accuracy(int(self.right[i].sum()), self.right.shape[1])


class _Batch(NamedTuple):
    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    ids: Tensor  # numbers of the examples, from which random starts are drawn

    @property
    def mask(self) -> Tensor:
        return self.inputs["attention_mask"]


def robust_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[Any],
    radii: Sequence[float],
    *,
    attack: Attack = "pgd",
    norm_type: NormType = "l2",
    steps: int = 6,
    batch_tokens: int = 8_192,
    seed: int = 0,
    name: str | None = None,
) -> Curve:
    """Attack every example at every radius, white-box, on the word embeddings; the model is left as it was.

    ``random``: one perturbation of that size in a random direction. ``one-ascent``: one step of that size along the
    gradient of the example's loss. ``pgd``: from a random start of half the size, ``steps`` ascents of 2.5 / steps of
    it, each projected back (Madry et al., 2018). Under l2 a sentence's perturbation has that norm; under linf each
    entry, and ascents follow the gradient's sign. An example counts as right where no answer on the way was wrong. The
    result is a function of the model, the data and ``seed``: neither batches nor other radii move it but by rounding.

    Args:
        tokens: tokenized examples with the model's own labels: ``labels`` (or ``label``) for classes and numbers,
            ``start_positions`` and ``end_positions`` for answers.
        radii: at least one, >= 0; at 0 nothing is attacked.
        batch_tokens: tokens of a batch, padding included.
        name: of a progress bar, where someone watches.

    Raises:
        ValueError: for an unknown attack or norm, a negative radius, or examples without labels.
    """
    checks.choice("attack", attack, ATTACKS)
    checks.choice("norm_type", norm_type, functional.NORM_TYPES)
    checks.positive_integer("steps", steps)
    if not radii or not len(tokens):
        raise ValueError(f"`radii` holds {len(radii)} and `tokens` {len(tokens)}; each needs at least one")
    for radius in radii:
        checks.number("radii", radius, low=0.0)
    loss = np.empty((len(radii), len(tokens)))
    right: np.ndarray | None = np.empty(loss.shape, dtype=bool)
    for words, batch in _batches(model, tokenizer, tokens, batch_tokens, name):
        numbers = batch.ids.cpu().numpy()
        for i, radius in enumerate(radii):
            worst, held = _attack(model, words, batch, radius, attack, norm_type, steps, seed)
            loss[i, numbers] = worst.double().cpu().numpy()
            if held is None or right is None:
                right = None
            else:
                right[i, numbers] = held.cpu().numpy()
    return Curve(tuple(float(radius) for radius in radii), loss, right)


def gradient_norms(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Any], *, batch_tokens: int = 8_192
) -> np.ndarray:
    """``||d loss_i / d delta_i||_2`` of each example at delta = 0, ``[examples]``: nats per unit of a perturbation."""
    norms = np.empty(len(tokens))
    for words, batch in _batches(model, tokenizer, tokens, batch_tokens, None):
        delta = words.zeros(batch.mask.shape, batch.mask.device).requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(_answer(model, words, batch, delta)[0].sum(), delta)
        norms[batch.ids.cpu().numpy()] = (grad * batch.mask.unsqueeze(-1)).flatten(1).norm(dim=1).double().cpu().numpy()
    return norms


@torch.no_grad()
def mean_token_norm(model: PreTrainedModel, tokens: Sequence[Any]) -> float:
    """The mean l2 norm of the tokens' word embeddings, by which radii may be told in the model's own measure."""
    table = WordEmbeddings(model)
    table.remove()
    norms = [table.module(torch.tensor(row["input_ids"], device=model.device)).norm(dim=-1) for row in tokens]
    return float(torch.cat(norms).mean())


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Any], budget: int, name: str | None
) -> Iterator[tuple[WordEmbeddings, _Batch]]:
    """The examples by length, without dropout and weight gradients; afterwards the model is as it was."""
    inputs = [{key: value for key, value in row.items() if key not in NOT_FOR_THE_MODEL} for row in tokens]
    lengths = [len(row["input_ids"]) for row in inputs]
    words = WordEmbeddings(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with untouched(model, model.device):
            for parameter in trained:
                parameter.requires_grad_(False)
            for indices, batch in padded_batches(model, tokenizer, inputs, lengths, budget, name=name):
                yield words, _split(dict(batch), indices)
    finally:
        words.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


def _attack(
    model: PreTrainedModel,
    words: WordEmbeddings,
    batch: _Batch,
    radius: float,
    attack: Attack,
    norm_type: NormType,
    steps: int,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """The largest loss of each example on the attack's way, and whether every answer on it was right."""
    if radius == 0:
        return _answer(model, words, batch, None)
    zeros = words.zeros(batch.mask.shape, batch.mask.device)
    if attack == "one-ascent":
        first = _ascended(model, words, batch, zeros, radius, norm_type)[0]
        return _answer(model, words, batch, _within(first, radius, norm_type))
    start = functional.freelb_init(zeros, batch.mask, 1.0, norm_type, seed=seed, sentence_ids=batch.ids, validate=False)
    start = _normal(start, norm_type)
    if attack == "random":
        return _answer(model, words, batch, radius * start)
    delta, worst, held = 0.5 * radius * start, None, None
    for _ in range(steps):
        climbed, loss, right = _ascended(model, words, batch, delta, 2.5 * radius / steps, norm_type)
        worst, held = _joined(worst, held, loss, right)
        delta = _within(climbed, radius, norm_type)
    return _joined(worst, held, *_answer(model, words, batch, delta))


def _ascended(
    model: PreTrainedModel, words: WordEmbeddings, batch: _Batch, delta: Tensor, size: float, norm_type: NormType
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Delta one ascent further; losses and answers where it stood."""
    delta = delta.detach().requires_grad_()
    with torch.enable_grad():
        loss, right = _answer(model, words, batch, delta)
        (grad,) = torch.autograd.grad(loss.sum(), delta)
    grad = grad * batch.mask.unsqueeze(-1)
    step = grad.sign() if norm_type == "linf" else _normal(grad, norm_type)
    return delta.detach() + size * step, loss.detach(), right


def _answer(
    model: PreTrainedModel, words: WordEmbeddings, batch: _Batch, delta: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Each example's loss, and whether its answer is right."""
    with words.shifted(delta):
        outputs = model(**batch.inputs)
    if "start_positions" in batch.labels:
        heads = [(outputs[f"{end}_logits"].float(), batch.labels[f"{end}_positions"]) for end in ("start", "end")]
        losses = [F.cross_entropy(logits, labels, reduction="none") for logits, labels in heads]
        right = torch.stack([logits.argmax(-1) == labels for logits, labels in heads]).all(0)
        return torch.stack(losses).mean(0), right
    logits, labels = outputs.logits.float(), batch.labels["labels"]
    if logits.shape[-1] == 1:
        return (logits[:, 0] - labels.float()).square(), None
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


def _joined(
    worst: Tensor | None, held: Tensor | None, loss: Tensor, right: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if worst is None:
        return loss, right
    return torch.maximum(worst, loss), None if held is None or right is None else held & right


def _normal(delta: Tensor, norm_type: NormType) -> Tensor:
    """Of norm 1 for each sentence; zero where it was."""
    flat = delta.flatten(1)
    size = flat.norm(dim=1) if norm_type == "l2" else flat.abs().amax(1)
    return delta / size.clamp_min(SMALLEST)[:, None, None]


def _within(delta: Tensor, radius: float, norm_type: NormType) -> Tensor:
    """Projected onto the ball."""
    if norm_type == "linf":
        return delta.clamp(-radius, radius)
    size = delta.flatten(1).norm(dim=1).clamp_min(SMALLEST)
    return delta * (radius / size).clamp(max=1)[:, None, None]


def _split(batch: dict[str, Tensor], indices: Sequence[int]) -> _Batch:
    names = ("labels", "start_positions", "end_positions")
    labels = {name: batch.pop(name) for name in names if name in batch}
    if "labels" not in labels and "start_positions" not in labels:
        raise ValueError(f"`tokens` holds {sorted(batch)} and no labels: the loss needs the right answers")
    mask = batch["attention_mask"]
    return _Batch(batch, labels, torch.tensor(indices, device=mask.device))
