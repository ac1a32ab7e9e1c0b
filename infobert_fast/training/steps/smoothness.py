"""Robust objectives that compare two predictions: SMART, R3F and R-Drop, as one step on one micro-batch.

All three add ``weight * D(f(x), f'(x))`` to the task loss; they differ in what makes the second prediction: an
adversary's perturbation, random noise, or other dropout masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from infobert_fast import checks
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import Batch, Pass
from infobert_fast.training.reliability.guard import mark_nonfinite
from infobert_fast.training.steps.replay import RandomReplay
from infobert_fast.training.steps.terms import Terms, detached

__all__ = [
    "R3F",
    "SMART",
    "Divergence",
    "Noise",
    "RDrop",
    "SmoothnessObjective",
    "divergence",
    "divergence_for",
    "smoothness_step",
]

Divergence = Literal["symmetric_kl", "squared_error"]
Noise = Literal["uniform", "normal"]


@dataclass(frozen=True)
class SMART:
    """``weight * max_{|delta| <= epsilon} D(f(x + delta), f(x))``: smoothness-inducing adversarial regularisation.

    ``delta`` starts at ``N(0, noise_std^2)``, climbs ``steps`` times by ``step_size * dD/d delta`` (each sentence by
    its own D) and is clamped to ``[-epsilon, epsilon]``. The Bregman proximal part of SMART is left out.

    Source: Jiang et al. 2020 (arXiv 1911.03437), algorithm 1 with p = infinity. The authors' released code divides the
    gradient by its largest entry per token instead of projecting, which is another adversary.
    """

    weight: float = 1.0
    epsilon: float = 1e-5
    step_size: float = 1e-3
    noise_std: float = 1e-5
    steps: int = 1

    def __post_init__(self) -> None:
        for name in ("weight", "epsilon", "step_size", "noise_std"):
            checks.number(f"smart_{name}", getattr(self, name), low=0.0)
        checks.positive_integer("smart_steps", self.steps)


@dataclass(frozen=True)
class R3F:
    """``weight * D(f(x + z), f(x))``, ``z ~ U(-scale, scale)`` or ``N(0, scale^2)`` on the word embeddings.

    Source: Aghajanyan et al. 2020 (arXiv 2008.03156).
    """

    weight: float = 1.0
    scale: float = 1e-5
    noise: Noise = "uniform"

    def __post_init__(self) -> None:
        checks.number("r3f_weight", self.weight, low=0.0)
        checks.number("r3f_scale", self.scale, low=0.0)
        checks.choice("r3f_noise", self.noise, ("uniform", "normal"))


@dataclass(frozen=True)
class RDrop:
    """``(task_1 + task_2) / 2 + weight * D(f_1(x), f_2(x)) / 2``: two passes under two dropout masks.

    Where D is the squared error it is not halved: the half is the mean of the two directions of the KL divergence.

    Source: Liang et al. 2021 (arXiv 2106.14448). The paper adds the two task losses; with their mean,
    a standard loss keeps its size, and ``weight`` is half the paper's alpha.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        checks.number("rdrop_weight", self.weight, low=0.0)


Method: TypeAlias = SMART | R3F | RDrop


@dataclass(frozen=True)
class SmoothnessObjective:
    """``task_loss + weight * D``.

    Args:
        method: what makes the second prediction.
        kind: D for the task: ``"symmetric_kl"`` for classes, ``"squared_error"`` for regression.
        same_dropout: replay the first pass's dropout masks in the others, so that D is the perturbation's doing alone.
            The published codes do not. R-Drop compares masks, and refuses it.
    """

    method: Method
    kind: Divergence = "symmetric_kl"
    same_dropout: bool = False

    def __post_init__(self) -> None:
        if self.same_dropout and isinstance(self.method, RDrop):
            raise ValueError(
                "`smoothness_dropout` was 'same' with R-Drop, whose two predictions differ by their dropout masks "
                "alone: use 'fresh'"
            )

    @property
    def units(self) -> int:
        """Work on a micro-batch, in forwards: a backward counts two, a gradient with respect to the input alone one."""
        return 6 + (2 * self.method.steps if isinstance(self.method, SMART) else 0)


def smoothness_step(objective: SmoothnessObjective, batch: Batch, runner: Runner, seed: int) -> Terms:
    """Accumulate the gradient of one micro-batch; the caller clips and steps the optimiser.

    Gradients flow through both predictions, by one backward: 2 forwards and 4 units of backward, for SMART a forward
    and an input gradient more for each ascent. Noise is drawn from ``seed``, dropout from the default generator.
    This code adds no host synchronisation.

    Args:
        objective, batch, runner, seed: as for :func:`infobert_fast.training.steps.infobert.infobert_step`.

    Returns:
        One pass's terms: ``loss`` (times the batch's weight), ``task_loss`` and ``smoothness``, what ``weight``
        multiplies: in nats, or the squared error of a regression.
    """
    method = objective.method
    replay = RandomReplay(batch.attention_mask.device)

    def again(delta: Tensor | None, forward: Callable[[Batch, Tensor | None], Pass]) -> Pass:
        if objective.same_dropout:
            replay.rewind()
        return forward(batch, delta)

    # Under DistributedDataParallel every forward but the last is a deferred one: a forward that announces a reduction
    # also overwrites the module's buffers, which the graph of the first may still hold.
    with runner.deferred():
        first = runner.forward(batch)
        target = [logits.detach() for logits in first.logits]
        probe = runner.probe if runner.second_forward else runner.forward
        delta = _perturbation(objective, batch, runner, target, lambda delta: again(delta, probe), seed)
    second = again(delta, runner.forward)
    task_loss = first.task_loss
    smoothness = divergence(first.logits, second.logits, objective.kind)
    if isinstance(method, RDrop):
        task_loss = (task_loss + second.task_loss) / 2
        smoothness = smoothness / 2 if objective.kind == "symmetric_kl" else smoothness
    loss = (task_loss + method.weight * smoothness) * batch.weight
    terms = detached({"task_loss": task_loss, "smoothness": smoothness, "loss": loss})
    runner.backward(mark_nonfinite(loss))
    return Terms(terms, [terms])


def divergence(first: Sequence[Tensor], second: Sequence[Tensor], kind: Divergence = "symmetric_kl") -> Tensor:
    """Mean over examples and heads of ``KL(p || q) + KL(q || p)`` in nats, or of ``(p - q)^2``.

    ``sum_c (p_c - q_c) (log p_c - log q_c)`` is the sum of the two directions, and no term of it is negative.

    Args:
        first, second: logits ``[batch, classes]``, one tensor a head (question answering has two); or predictions.
        kind: ``"symmetric_kl"`` or ``"squared_error"``.
    """
    values = []
    for one, other in zip(first, second, strict=True):
        if kind == "squared_error":
            values.append((one - other).square().mean())
        else:
            log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
            values.append(((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean())
    return torch.stack(values).mean()


def divergence_for(config: PreTrainedConfig, labels: Any = None) -> Divergence:
    """The divergence of a model's task: by its ``problem_type``, or as transformers tells it from the labels.

    Raises:
        ValueError: for several labels at once, whose predictions are no distribution over classes.
    """
    task = getattr(config, "problem_type", None)
    numbers = isinstance(labels, Tensor) and labels.is_floating_point()
    several = task is None and (config.num_labels or 1) > 1 and numbers
    if task == "multi_label_classification" or several:
        raise ValueError(
            "the model has several labels at once ('multi_label_classification'); they are no distribution that a "
            "divergence could compare: use objective 'vanilla', 'freelb' or 'infobert'"
        )
    return "squared_error" if task == "regression" or config.num_labels == 1 else "symmetric_kl"


def _perturbation(
    objective: SmoothnessObjective,
    batch: Batch,
    runner: Runner,
    target: Sequence[Tensor],
    again: Callable[[Tensor], Pass],
    seed: int,
) -> Tensor | None:
    """What the second pass adds to the word embeddings, zero at padding: a function of ``seed`` and the model."""
    method = objective.method
    if isinstance(method, RDrop):
        return None
    mask = batch.attention_mask
    padding = ~mask.bool().unsqueeze(-1)
    generator = torch.Generator(device=mask.device).manual_seed(seed)
    delta = runner.model.words.zeros(mask.shape, mask.device)
    if isinstance(method, R3F):
        if method.noise == "uniform":
            delta.uniform_(-method.scale, method.scale, generator=generator)
        else:
            delta.normal_(0, method.scale, generator=generator)
        return delta.masked_fill_(padding, 0)
    delta.normal_(0, method.noise_std, generator=generator).masked_fill_(padding, 0)
    unit = runner.scale(torch.ones((), device=delta.device))
    for _ in range(method.steps):
        delta.requires_grad_()
        # The mean over the batch would make a sentence's step depend on how many others there are.
        value = divergence(again(delta).logits, target, objective.kind) * len(delta)
        grad = runner.input_gradient(value, delta)
        delta = (delta.detach() + method.step_size * grad / unit).clamp(-method.epsilon, method.epsilon)
        delta = delta.masked_fill(padding, 0)
    return delta
