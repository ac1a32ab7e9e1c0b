"""How large an adversary and how heavy regularisers an encoder wants: measured on it, before an adversarial run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast import checks, functional
from infobert_fast.estimators import InfoNCE
from infobert_fast.evaluation.information import NOT_FOR_THE_MODEL
from infobert_fast.evaluation.robust_curve import ATTACKS, gradient_norms, robust_curve
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.look import settle_feature, untouched
from infobert_fast.training.models.forward import Batch, Pass, PerturbedModel

__all__ = ["Calibration", "Term", "calibrate"]

STEPS = (0.25, 0.5, 1.0, 2.0, 4.0)  # radii measured, in units of the one that the gradient predicts
TELLS = 0.01  # nats of the held-out anchored bound, below which the critic has found nothing
PUBLISHED_ALPHA = 5e-3


@dataclass(frozen=True)
class Term:
    """A term's mean value in nats, and the mean norm of its gradient with respect to the model's parameters."""

    value: float
    gradient: float


@dataclass(frozen=True)
class Calibration:
    """What was measured, and what follows from it.

    Args:
        loss: mean task loss, and ``chance``, that of a model which knows nothing (NaN where that is not defined).
        slope: mean norm of a sentence's gradient with respect to its perturbation, nats per unit.
        radii: l2 norms of a sentence's perturbation, and ``rises``, by attack the mean rise of the loss at each.
        terms: task, bottleneck (``ib``) and anchored features (``afr``), by name.
        held_out: the anchored bound of the fitted critic on sentences that it has not seen, nats.
        settings: the arguments for a training, by name.
    """

    loss: float
    chance: float
    slope: float
    radii: tuple[float, ...]
    rises: dict[str, tuple[float, ...]]
    terms: dict[str, Term]
    held_out: float
    settings: dict[str, float]


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[Any],
    *,
    rise: float = 0.2,
    share: float = 0.05,
    cl: float = 0.5,
    ch: float = 0.9,
    batch_size: int = 32,
    batch_tokens: int = 8_192,
    seed: int = 0,
) -> Calibration:
    """Measure a trained model and derive an adversary and weights for it; the model is left as it was.

    The rule. ``adv_lr`` is the radius at which one ascent raises the mean loss by ``rise`` nats, between measured radii
    by a straight line in their logarithms; the measured radii lie around ``rise / mean ||g||``. ``adv_init_mag`` is
    twice that and ``adv_max_norm`` 0, the proportions published for ANLI. ``beta`` and ``alpha`` give the bottleneck's
    and the anchored features' gradient ``share`` of the task's, by the norms over the model's parameters. The anchored
    term is measured with a critic fitted on frozen features until its bound on held-out sentences stops rising: a new
    critic tells nothing, and its gradient is that of nothing. Where even the fitted one stays below 0.01 nats held
    out, ``alpha`` is the published 5e-3.

    Args:
        tokens: tokenized examples with the model's own labels, as for
            :func:`infobert_fast.evaluation.robust_curve.robust_curve`; a few hundred suffice.
        rise: nats; 0.2 is a moderate adversary, 0.5 a strong one.
        share: of the task's gradient.
        cl, ch: the anchor window.
        batch_size: sentences of a batch in which the terms are measured, as in training.

    Raises:
        ValueError: for a model that is not better than chance, one whose loss no such perturbation raises by ``rise``,
            and fewer than two batches of examples.
    """
    checks.number("rise", rise, low=1e-3)
    checks.number("share", share, low=1e-6, high=1.0)
    checks.anchor_window(cl, ch)
    checks.positive_integer("batch_size", batch_size)
    if len(tokens) < 4 * batch_size:
        raise ValueError(
            f"there are {len(tokens)} examples; four batches of {batch_size} are needed, one to hold out: give more, "
            f"or lower `batch_size`"
        )
    slope = float(gradient_norms(model, tokenizer, tokens, batch_tokens=batch_tokens).mean())
    if not math.isfinite(slope) or slope <= 0:
        raise ValueError(f"the mean gradient of the loss is {slope}; no perturbation has an effect on this model")
    radii = (0.0, *(step * rise / slope for step in STEPS))
    losses = {
        attack: robust_curve(
            model, tokenizer, tokens, radii, attack=attack, batch_tokens=batch_tokens, seed=seed
        ).loss.mean(1)
        for attack in ATTACKS
    }
    loss, chance = float(losses["pgd"][0]), _chance(model)
    if loss > 0.9 * chance:
        raise ValueError(
            f"the mean loss is {loss:.3f} nats, where a model that knows nothing has {chance:.3f}: train it first, "
            f"without an adversary (--objective vanilla), and calibrate then"
        )
    rises: dict[str, tuple[float, ...]]
    rises = {attack: tuple(float(value) for value in values[1:] - values[0]) for attack, values in losses.items()}
    adv_lr = _radius_of(rise, radii[1:], rises["one-ascent"])
    terms, held_out = _terms(model, tokenizer, tokens, cl, ch, batch_size, seed)
    beta = share * terms["task"].gradient / terms["ib"].gradient
    alpha = share * terms["task"].gradient / terms["afr"].gradient if held_out >= TELLS else PUBLISHED_ALPHA
    settings = {"adv_lr": adv_lr, "adv_init_mag": 2 * adv_lr, "adv_max_norm": 0.0, "alpha": alpha, "beta": beta}
    settings = {name: float(f"{value:.2g}") for name, value in settings.items()}
    return Calibration(loss, chance, slope, radii[1:], rises, terms, held_out, settings)


def _radius_of(rise: float, radii: Sequence[float], rises: Sequence[float]) -> float:
    """Where a curve first passes ``rise``, by a straight line between logarithms."""
    below: tuple[float, float] | None = None
    for radius, value in zip(radii, rises, strict=True):
        if value >= rise:
            if below is None or below[1] <= 0:
                return radius * rise / value
            weight = math.log(rise / below[1]) / math.log(value / below[1])
            return below[0] * (radius / below[0]) ** weight
        below = (radius, value)
    raise ValueError(
        f"one ascent of {radii[-1]:.3g} raises the loss by {rises[-1]:.3f} nats alone, where `rise` was {rise}: lower "
        f"`rise`, or train the model further"
    )


def _chance(model: PreTrainedModel) -> float:
    classes: int = model.config.num_labels or 1
    answers = type(model).__name__.endswith("ForQuestionAnswering")
    return math.nan if classes == 1 or answers else math.log(classes)


def _terms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[Any],
    cl: float,
    ch: float,
    batch_size: int,
    seed: int,
) -> tuple[dict[str, Term], float]:
    """Each term's value and gradient, means over batches; and the fitted critic's held-out bound."""
    anchored, bottleneck = AnchoredFeature(cl, ch), InformationBottleneck("tokens")
    perturbed = PerturbedModel(model)
    batches = _as_batches(model, tokenizer, tokens, batch_size, seed)
    try:
        with untouched(model, model.device):
            model.eval()
            perturbed.feature = settle_feature(perturbed, model, batches[0], None)
            critic, held_out = _fit_critic(perturbed, anchored, batches, seed)
            found: dict[str, list[tuple[float, float]]] = {"task": [], "ib": [], "afr": []}
            for batch in batches:
                states, grad = _states(perturbed, batch)
                mask, lengths = batch.attention_mask, batch.lengths
                bounds = {
                    "task": states.task_loss,
                    "ib": bottleneck(states.embedded, states.last_hidden, mask, lengths, sentence=states.sentence),
                    "afr": anchored(critic, states.embedded, states.sentence, grad, mask, lengths),
                }
                for name, bound in bounds.items():
                    found[name].append((float(bound), _norm_of(bound, model)))
    finally:
        perturbed.remove()
    return {name: Term(*np.mean(rows, axis=0).tolist()) for name, rows in found.items()}, held_out


def _as_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Any], size: int, seed: int
) -> list[Batch]:
    """Whole batches of the examples in a random order."""
    collate = DataCollatorWithPadding(tokenizer)
    order = np.random.default_rng(seed).permutation(len(tokens)).tolist()
    found = []
    for start in range(0, len(order) - size + 1, size):
        rows = [tokens[i] for i in order[start : start + size]]
        rows = [{key: value for key, value in row.items() if key not in NOT_FOR_THE_MODEL} for row in rows]
        inputs = {name: value.to(model.device) for name, value in collate(rows).items()}
        found.append(Batch(inputs, inputs["attention_mask"].sum(1).tolist()))
    return found


def _states(perturbed: PerturbedModel, batch: Batch) -> tuple[Pass, Tensor]:
    """A pass without a perturbation, and the gradient that ranks its anchors."""
    mask = batch.attention_mask
    delta = perturbed.words.zeros(mask.shape, mask.device).requires_grad_()
    states = perturbed(perturbed.bare, batch, delta)
    return states, torch.autograd.grad(states.task_loss, delta, retain_graph=True)[0]


def _fit_critic(
    perturbed: PerturbedModel, anchored: AnchoredFeature, batches: Sequence[Batch], seed: int, patience: int = 5
) -> tuple[InfoNCE, float]:
    """The critic of the best epoch by the held-out quarter, and its bound there."""
    features = []
    for batch in batches:
        states, grad = _states(perturbed, batch)
        rows, length = states.embedded.detach().flatten(0, 1), batch.attention_mask.shape[1]
        chosen = functional.anchor_indices(grad, batch.attention_mask, anchored.cl, anchored.ch, lengths=batch.lengths)
        if len(chosen):
            features.append((rows[chosen], states.sentence.detach(), chosen // length))
    if len(features) < 4:
        raise ValueError(f"{len(features)} of {len(batches)} batches have an anchor; widen the window `cl` to `ch`")
    held, fitting = features[: len(features) // 4], features[len(features) // 4 :]
    width, device = features[0][0].shape[1], features[0][0].device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        critic = InfoNCE(width, width).to(device)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    order = np.random.default_rng(seed)

    def bound(part: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        value: Tensor = critic(part[0], part[1], pair_index=part[2])
        return value

    best, weights, since = -math.inf, {}, 0
    while since < patience:
        for i in order.permutation(len(fitting)):
            optimizer.zero_grad()
            (-bound(fitting[i])).backward()
            optimizer.step()
        with torch.no_grad():
            value = float(torch.stack([bound(part) for part in held]).mean())
        since += 1
        if value > best:
            best, since = value, 0
            weights = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    critic.load_state_dict(weights)
    return critic, best


def _norm_of(loss: Tensor, model: PreTrainedModel) -> float:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return float(torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None]))
