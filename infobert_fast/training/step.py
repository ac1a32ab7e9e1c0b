"""One InfoBERT step on one micro-batch: K passes, each with one forward, one input gradient and one backward.

The anchors need the gradient of the loss before the anchored-feature term exists. Taking it with respect to the
perturbation alone computes no weight gradients, and the one backward that follows carries both terms: 4 units of work a
pass instead of the 5 of two full backwards, one gradient reduction instead of two, the same gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from infobert_fast import functional
from infobert_fast.adversary import FreeLB
from infobert_fast.estimators import InfoNCE
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.replay import RandomReplay

__all__ = ["AnchorSource", "Objective", "Pass", "infobert_step", "step_seed"]

AnchorSource = Literal["current", "previous"]


class Pass(NamedTuple):
    """What a forward returns: task loss, ``[batch, length, hidden]`` of embedding block and encoder, logits by head."""

    task_loss: Tensor
    embedded: Tensor
    last_hidden: Tensor
    logits: tuple[Tensor, ...] = ()


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


def infobert_step(
    objective: Objective,
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

    For pass k of K: ``L1 = (task + beta IB) / K``; ``g = dL1 / d delta`` ranks the anchors and drives the ascent; then
    ``backward(scale * (L1 - alpha AFR / K))``. Dropout masks are the same in all passes. Nothing waits for the device.

    Args:
        objective: the terms and the adversary.
        input_ids, attention_mask: ``[batch, length]``.
        lengths: tokens per sentence, known on the host.
        word_embeddings: ids to ``[batch, length, d]``; delta is added to its result.
        forward: from perturbed embeddings to a :class:`Pass`. Called K times.
        backward: called with a loss and whether it is the micro-batch's last; accumulates.
        seed: of delta's start and of sampled partners, see :func:`step_seed`.
        probe: ``forward`` for g alone, where a graph of ``forward`` can be traversed only once (ZeRO-3 frees weights
            behind the traversal): called before it, with the same random state, and a pass takes 5 units instead of 4.
        scale: 1 / gradient accumulation steps; it divides every term. Where a rank's differs from the others', a term
            over all ranks is scaled by the mean of theirs.
        scale_gradient: a float16 loss scaler, so that g does not underflow; its size does not matter otherwise.
        defer_reduction: a context for all passes but the last, in which gradients are not reduced over ranks.
        observe: shown each pass's detached terms before its backward.

    Returns:
        Detached scalars on the device, means over the passes: ``loss`` (times ``scale``), ``task_loss``, and where
        present ``ib_upper_bound`` and ``afr_lower_bound`` in nats.

    Raises:
        ValueError: where ``probe`` would let a learned bottleneck learn twice in one pass.
    """
    adversary, passes = objective.adversary, objective.adversary.passes
    bottleneck, anchored, critic = objective.bottleneck, objective.anchored, objective.critic
    if probe is not None and anchored is not None and bottleneck is not None and bottleneck.club is not None:
        raise ValueError("`probe` was given with a learned bottleneck, which would learn twice in a pass: use CLUBv2's")
    replay = RandomReplay(input_ids.device)
    generator = torch.Generator(device=input_ids.device).manual_seed(seed ^ 1)
    joint = _joint(objective, lengths, scale)
    delta: Tensor | None = None
    before: Tensor | None = None  # the gradient of the pass before, where it ranks the anchors
    sums: dict[str, Tensor] = {}

    def run(forward: Callable[[Tensor], Pass], clean: bool) -> tuple[Pass, dict[str, Tensor], Tensor]:
        """The states, the terms of L1 and their sum at the present delta, or at none."""
        nonlocal delta
        embeddings = word_embeddings(input_ids)
        if anchored is not None or adversary.perturbs:
            if clean:
                delta = torch.zeros_like(embeddings)
            elif delta is None:
                # By place in the micro-batch, whose seed is its own: packed or not, and resumed, a sentence's is one.
                delta = adversary.start(embeddings, attention_mask, seed)
            delta.requires_grad_()
            embeddings = embeddings + delta
        states = forward(embeddings)
        terms, loss = {"task_loss": states.task_loss}, states.task_loss
        if bottleneck is not None:
            bound = bottleneck(states.embedded, states.last_hidden, attention_mask, lengths, generator)
            terms["ib_upper_bound"] = bound
            loss = loss + objective.beta * joint.ib_weight * bound
        return states, terms, loss

    def gradient(loss: Tensor, *, keep_graph: bool) -> Tensor:
        """dL1 / d delta, and no weight's gradient."""
        assert delta is not None
        return torch.autograd.grad(scale_gradient(loss / passes), delta, retain_graph=keep_graph)[0]

    for k in range(passes):
        last, clean = k == passes - 1, k == 0 and adversary.clean_pass
        with contextlib.nullcontext() if last else defer_reduction():
            if k:
                replay.rewind()
            grad = before
            if anchored is not None and grad is None and probe is not None:
                partners = generator.get_state()
                grad = gradient(run(probe, clean)[2], keep_graph=False)
                replay.rewind()
                generator.set_state(partners)
            states, terms, loss = run(forward, clean)
            if anchored is not None:
                assert critic is not None
                if grad is None:
                    grad = gradient(loss, keep_graph=True)
                bound = anchored(
                    critic, states.embedded, states.last_hidden[:, 0], grad, attention_mask, lengths, joint.pairs
                )
                terms["afr_lower_bound"] = bound
                loss = loss - objective.alpha * joint.afr_weight * bound
            terms["loss"] = loss * scale
            terms = {name: term.detach().float() for name, term in terms.items()}
            observe(terms)
            backward(loss * (scale / passes), last)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term / passes
        if not last:
            assert delta is not None
            # The backward left the whole loss's gradient in delta.grad. Without anchors that is g, at FreeLB's 3 units.
            ascent = grad if grad is not None and objective.anchor_source == "current" else delta.grad
            assert ascent is not None
            before = ascent if objective.anchor_source == "previous" else None
            # After a clean pass the adversary begins where it does without one.
            delta = None if clean else adversary.ascend(delta.detach(), ascent, attention_mask)
    return sums


class _Joint(NamedTuple):
    """What a step with terms over all ranks has to know of the others."""

    ib_weight: float = 1.0
    afr_weight: float = 1.0
    pairs: Sequence[int] | None = None


def _joint(objective: Objective, lengths: Sequence[int], scale: float) -> _Joint:
    """Once a step, and only where a term is over all ranks: waits for the other hosts, and not for the device."""
    bottleneck, anchored = objective.bottleneck, objective.anchored
    ib = bottleneck is not None and bottleneck.over_ranks
    afr = anchored is not None and anchored.over_ranks
    if not ib and not afr:
        return _Joint()
    pairs = 0 if anchored is None else anchored.count(lengths)
    scales, counts = zip(*functional.exchange(scale, pairs), strict=True)
    # A joint term has one weight, and the loss is multiplied by this rank's own.
    weight = sum(scales) / len(scales) / scale
    return _Joint(weight if ib else 1.0, weight if afr else 1.0, [int(n) for n in counts] if afr else None)


def step_seed(seed: int, rank: int, step: int, micro_step: int) -> int:
    """One micro-batch's seed on one rank: a function of its place, so that a resumed run repeats it."""
    return int(np.random.SeedSequence([seed, rank, step, micro_step]).generate_state(1, np.uint64)[0] >> 1)
