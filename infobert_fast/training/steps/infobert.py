"""One InfoBERT step on one micro-batch: K passes, each with one forward, one input gradient and one backward.

The anchors need the gradient of the loss before the anchored-feature term exists. Taking it with respect to the
perturbation alone computes no weight gradients, and the one backward that follows carries both terms: 4 units of work a
pass instead of the 5 of two full backwards, one gradient reduction instead of two, the same gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infobert_fast import functional
from infobert_fast.adversary import FreeLB
from infobert_fast.estimators import InfoNCE
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import Batch, Pass
from infobert_fast.training.reliability.guard import mark_nonfinite
from infobert_fast.training.steps.replay import RandomReplay
from infobert_fast.training.steps.terms import Terms, detached, mean_of, times

__all__ = ["AnchorSource", "Objective", "infobert_step", "step_seed"]

AnchorSource = Literal["current", "previous"]


@dataclass
class Objective:
    """``task_loss + beta * bottleneck - alpha * anchored``; a term is left out where its module is None.

    ``anchor_source`` says whose gradient ranks the tokens: ``"current"``, the pass's own, is the method. ``"previous"``
    is another, cheaper one: from the second pass on, ``d(L1 - alpha AFR) / d delta`` of the pass before ranks the
    anchors, and it drives every ascent, so that one input gradient a step is enough: 3 K + 1 units instead of 4 K.
    """

    adversary: FreeLB
    bottleneck: InformationBottleneck | None = None
    anchored: AnchoredFeature | None = None
    critic: InfoNCE | None = None
    beta: float = 0.0
    alpha: float = 0.0
    anchor_source: AnchorSource = "current"

    @property
    def units(self) -> int:
        """Work on a micro-batch, in forwards: a backward counts two, a gradient with respect to the input alone one."""
        passes = self.adversary.passes
        if self.anchored is None:
            return 3 * passes
        return 3 * passes + (1 if self.anchor_source == "previous" else passes)


def infobert_step(objective: Objective, batch: Batch, runner: Runner, seed: int) -> Terms:
    """Accumulate the gradient of one micro-batch; the caller clips and steps the optimiser.

    For pass k of K: ``L1 = (task + beta IB) / K``; ``g = dL1 / d delta`` ranks the anchors and drives the ascent; then
    ``backward(weight * (L1 - alpha AFR / K))``. Dropout masks are the same in all passes. This code adds no host
    synchronisation.

    Args:
        objective: the terms and the adversary.
        batch: the micro-batch. Where its weight differs from other ranks', a term over all ranks is weighted by the
            mean of theirs.
        runner: runs forwards and backwards. Where a graph can be traversed only once, the input gradient takes a
            forward of its own, with the same random state, and a pass takes 5 units of work instead of 4.
        seed: of delta's start and of sampled partners, see :func:`step_seed`.

    Returns:
        The terms of each pass and their means: ``loss`` (times the batch's weight), ``task_loss``, and where present
        ``ib_upper_bound`` and ``afr_lower_bound`` in nats.

    Raises:
        ValueError: where a learned bottleneck would learn twice in one pass.
    """
    adversary, passes = objective.adversary, objective.adversary.passes
    bottleneck, anchored, critic = objective.bottleneck, objective.anchored, objective.critic
    probes = anchored is not None and runner.second_forward
    if probes and bottleneck is not None and bottleneck.club is not None:
        raise ValueError(
            "`version` 0 and 1 have a learned bottleneck, which would learn twice in a pass of this engine, whose "
            "anchors need a second forward: use CLUBv2's (`version` 5 or 6)"
        )
    mask, lengths = batch.attention_mask, batch.lengths
    replay = RandomReplay(mask.device)
    generator = torch.Generator(device=mask.device).manual_seed(seed ^ 1)
    joint = _joint(objective, lengths, batch.weight)
    delta: Tensor | None = None
    if anchored is not None or adversary.perturbs:
        delta = runner.model.words.zeros(mask.shape, mask.device)
    before: Tensor | None = None  # the gradient of the pass before, where it ranks the anchors
    seen = []

    def first_terms(forward: Callable[[Batch, Tensor | None], Pass]) -> tuple[Pass, dict[str, Tensor], Tensor]:
        """The states, the terms of L1 and their sum at the present delta."""
        states = forward(batch, delta)
        terms, loss = {"task_loss": states.task_loss}, states.task_loss
        if bottleneck is not None:
            bound = bottleneck(states.embedded, states.last_hidden, mask, lengths, generator, sentence=states.sentence)
            terms["ib_upper_bound"] = bound
            loss = loss + objective.beta * joint.ib_weight * bound
        return states, terms, loss

    def gradient(loss: Tensor, *, keep_graph: bool) -> Tensor:
        """dL1 / d delta, and no weight's gradient."""
        assert delta is not None
        return runner.input_gradient(loss / passes, delta, keep_graph=keep_graph)

    for k in range(passes):
        last, clean = k == passes - 1, k == 0 and adversary.clean_pass
        if delta is not None:
            # By place in the micro-batch, whose seed is its own: a sentence's start is one, packed or resumed.
            if k == int(adversary.clean_pass):
                delta = adversary.start(delta, mask, seed)
            delta.requires_grad_()
        with contextlib.nullcontext() if last else runner.deferred():
            if k:
                replay.rewind()
            grad = before
            if probes and grad is None:
                partners = generator.get_state()
                grad = gradient(first_terms(runner.probe)[2], keep_graph=False)
                replay.rewind()
                generator.set_state(partners)
            states, terms, loss = first_terms(runner.forward)
            if anchored is not None:
                assert critic is not None
                if grad is None:
                    grad = gradient(loss, keep_graph=True)
                bound = anchored(critic, states.embedded, states.sentence, grad, mask, lengths, joint.pairs)
                terms["afr_lower_bound"] = bound
                loss = loss - objective.alpha * joint.afr_weight * bound
            terms["loss"] = times(loss, batch.weight)
            seen.append(detached(terms))
            runner.backward(mark_nonfinite(times(loss, batch.weight / passes)), last)
        if not last:
            assert delta is not None
            # The backward left the whole loss's gradient in delta.grad. Without anchors that is g, at FreeLB's 3 units.
            ascent = grad if grad is not None and objective.anchor_source == "current" else delta.grad
            assert ascent is not None
            before = ascent if objective.anchor_source == "previous" else None
            # After a clean pass the adversary begins where it does without one.
            delta = delta.detach() if clean else adversary.ascend(delta.detach(), ascent, mask)
    return Terms(mean_of(seen), seen)


class _Joint(NamedTuple):
    """What a step with terms over all ranks has to know of the others."""

    ib_weight: float = 1.0
    afr_weight: float = 1.0
    pairs: Sequence[int] | None = None


def _joint(objective: Objective, lengths: Sequence[int], weight: float) -> _Joint:
    """Once a step, and only where a term is over all ranks: waits for the other hosts, and not for the device."""
    bottleneck, anchored = objective.bottleneck, objective.anchored
    ib = bottleneck is not None and bottleneck.over_ranks
    afr = anchored is not None and anchored.over_ranks
    if not ib and not afr:
        return _Joint()
    pairs = 0 if anchored is None else anchored.count(lengths)
    weights, counts = zip(*functional.exchange(weight, pairs), strict=True)
    # A joint term has one weight, and the loss is multiplied by this rank's own.
    ratio = sum(weights) / len(weights) / weight
    return _Joint(ratio if ib else 1.0, ratio if afr else 1.0, [int(n) for n in counts] if afr else None)


def step_seed(seed: int, rank: int, step: int, micro_step: int) -> int:
    """One micro-batch's seed on one rank: a function of its place, so that a resumed run repeats it."""
    return int(np.random.SeedSequence([seed, rank, step, micro_step]).generate_state(1, np.uint64)[0] >> 1)
