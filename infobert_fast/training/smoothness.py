"""Robust objectives that compare two predictions: SMART, R3F and R-Drop, as one step on one micro-batch.

All three add ``weight * D(f(x), f'(x))`` to the task loss; they differ in what makes the second prediction: an
adversary's perturbation, random noise, or other dropout masks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from infobert_fast import checks
from infobert_fast.training.replay import RandomReplay
from infobert_fast.training.step import Pass

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


def smoothness_step(
    objective: SmoothnessObjective,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    lengths: Sequence[int],
    word_embeddings: Callable[[Tensor], Tensor],
    forward: Callable[[Tensor], Pass],
    backward: Callable[[Tensor, bool], None],
    seed: int,
    probe: Callable[[Tensor], Pass] | None = None,
    scale: float = 1.0,
    scale_gradient: Callable[[Tensor], Tensor] = lambda loss: loss,
    defer_reduction: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    observe: Callable[[Mapping[str, Tensor]], None] = lambda terms: None,
) -> Mapping[str, Tensor]:
    """Accumulate the gradient of one micro-batch; the caller clips and steps the optimiser.

    The interface of :func:`infobert_fast.training.step.infobert_step`, whose arguments these are. Gradients flow
    through both predictions, by one backward: 2 forwards and 4 units of backward, for SMART a forward and an input
    gradient more for each ascent. Nothing waits for the device; noise is drawn from ``seed``, dropout from the default
    generator.

    Returns:
        Detached scalars on the device: ``loss`` (times ``scale``), ``task_loss`` and ``smoothness``, what ``weight``
        multiplies: in nats, or the squared error of a regression.
    """
    method = objective.method
    replay = RandomReplay(input_ids.device)

    def again(delta: Tensor | None, forward: Callable[[Tensor], Pass] = forward) -> Pass:
        if objective.same_dropout:
            replay.rewind()
        embeddings = word_embeddings(input_ids)
        return forward(embeddings if delta is None else embeddings + delta)

    # Under DistributedDataParallel every forward but the last is a deferred one: a forward that announces a reduction
    # also overwrites the module's buffers, which the graph of the first may still hold.
    with defer_reduction():
        embeddings = word_embeddings(input_ids)
        first = forward(embeddings)
        target = [logits.detach() for logits in first.logits]
        padding = ~attention_mask.bool().unsqueeze(-1)
        ascended = functools.partial(again, forward=probe or forward)
        delta = _perturbation(objective, embeddings, padding, target, ascended, seed, scale_gradient)
    second = again(delta)
    task_loss = first.task_loss
    smoothness = divergence(first.logits, second.logits, objective.kind)
    if isinstance(method, RDrop):
        task_loss = (task_loss + second.task_loss) / 2
        smoothness = smoothness / 2 if objective.kind == "symmetric_kl" else smoothness
    loss = (task_loss + method.weight * smoothness) * scale
    terms = {"task_loss": task_loss, "smoothness": smoothness, "loss": loss}
    terms = {name: term.detach().float() for name, term in terms.items()}
    observe(terms)
    backward(loss, True)
    return terms


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


def divergence_for(config: PreTrainedConfig) -> Divergence:
    """The divergence of a model's task.

    Raises:
        ValueError: for several labels at once, whose predictions are no distribution over classes.
    """
    task = getattr(config, "problem_type", None)
    if task == "multi_label_classification":
        raise ValueError(
            "the model's `problem_type` is 'multi_label_classification'; its labels are no distribution that a "
            "divergence could compare: use objective 'vanilla', 'freelb' or 'infobert'"
        )
    return "squared_error" if task == "regression" or config.num_labels == 1 else "symmetric_kl"


def _perturbation(
    objective: SmoothnessObjective,
    embeddings: Tensor,
    padding: Tensor,
    target: Sequence[Tensor],
    again: Callable[[Tensor], Pass],
    seed: int,
    scale_gradient: Callable[[Tensor], Tensor],
) -> Tensor | None:
    """What the second pass adds to the word embeddings, zero at padding: a function of ``seed`` and the model."""
    method = objective.method
    if isinstance(method, RDrop):
        return None
    generator = torch.Generator(device=embeddings.device).manual_seed(seed)
    delta = torch.empty_like(embeddings, requires_grad=False)
    if isinstance(method, R3F):
        if method.noise == "uniform":
            delta.uniform_(-method.scale, method.scale, generator=generator)
        else:
            delta.normal_(0, method.scale, generator=generator)
        return delta.masked_fill_(padding, 0)
    delta.normal_(0, method.noise_std, generator=generator).masked_fill_(padding, 0)
    unit = scale_gradient(torch.ones((), device=delta.device))
    for _ in range(method.steps):
        delta.requires_grad_()
        # The mean over the batch would make a sentence's step depend on how many others there are.
        value = divergence(again(delta).logits, target, objective.kind) * len(delta)
        (grad,) = torch.autograd.grad(scale_gradient(value), delta)
        delta = (delta.detach() + method.step_size * grad / unit).clamp(-method.epsilon, method.epsilon)
        delta = delta.masked_fill(padding, 0)
    return delta
