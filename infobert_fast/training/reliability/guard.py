"""No optimiser step from a loss or gradient that is not finite, on any rank, at one host read an optimisation step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

__all__ = ["Nonfinite", "NonfiniteGuard", "mark_nonfinite"]

logger = logging.getLogger(__name__)

Nonfinite = Literal["stop", "skip"]


def mark_nonfinite(loss: Tensor) -> Tensor:
    """The same loss, bit for bit; its gradient is NaN where it is not finite. Does not wait for the device."""
    value = loss.detach()
    return loss * (value - value + 1)


class NonfiniteGuard:
    """Between the last backward and the optimiser's step: is the gradient's norm finite?

    A loss that is not finite makes its whole gradient NaN (:func:`mark_nonfinite`), and gradients are summed over
    ranks. So the norm alone tells, equally on all ranks, with no communication of its own. Which term of which
    micro-batch it was is looked up only then.
    """

    def __init__(self, action: Nonfinite) -> None:
        self.action = action
        self.skipped = 0  # steps, so far
        self._passes: list[tuple[int, Mapping[str, Tensor]]] = []  # of this step: micro-batch and terms, on the device

    def note(self, micro_step: int, passes: Sequence[Mapping[str, Tensor]]) -> None:
        """Keep the terms of a micro-batch's passes until the step's end. Does not wait for the device."""
        self._passes += [(micro_step, terms) for terms in passes]

    def forget(self) -> None:
        """Leave the step to a loss scaler."""
        self._passes = []

    def passes(
        self,
        norm: Tensor | float | None,
        *,
        step: int,
        rank: int,
        gather: Callable[[list[Any]], list[Any]],
        examples: Callable[[int], list[int] | None],
    ) -> bool:
        """Whether the optimiser may step; reads the norm on the host. Ask it once an optimisation step.

        Args:
            norm: of the whole gradient, after its reduction over ranks; None where it is not known.
            step: optimisation steps done so far.
            rank: this process's.
            gather: joins a list over all ranks.
            examples: a micro-batch's number within the step to its examples' numbers in the training set.

        Raises:
            FloatingPointError: with ``action="stop"`` for a norm that is not finite, on all ranks with the same words.
        """
        seen, self._passes = self._passes, []
        if norm is None or math.isfinite(norm):
            return True
        faults: dict[int, dict[str, float]] = {}
        for number, terms in seen:  # a pass that fails takes the later ones with it: the first one counts
            faults[number] = faults.get(number) or _faults(terms)
        batches = gather([(rank, number, found, examples(number)) for number, found in faults.items()])
        faulty = [batch for batch in batches if batch[2]]
        causes = ", ".join(dict.fromkeys(name for batch in faulty for name in batch[2])) or "gradient"
        told = "; ".join(_tell(*batch) for batch in faulty or batches)
        text = f"step {step}: {causes} not finite ({told})"
        if self.action == "stop":
            raise FloatingPointError(
                f"{text}. The step was not taken and nothing was saved; look at these examples, lower `learning_rate` "
                f"or `adv_lr`, raise `adv_start_step`, or set nonfinite='skip' to leave such steps out"
            )
        self.skipped += 1
        logger.warning("%s. The step is left out, %d so far.", text, self.skipped)
        return False


def _faults(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The terms that are not finite; the whole loss where its parts are."""
    values = {name: float(term) for name, term in terms.items()}
    found = {name: value for name, value in values.items() if not math.isfinite(value)}
    return {name: value for name, value in found.items() if name != "loss"} or found


def _tell(rank: int, number: int, faults: Mapping[str, float], examples: list[int] | None) -> str:
    what = ", ".join(f"{name} {value}" for name, value in faults.items()) or "terms finite"
    where = "" if examples is None else f", training examples {', '.join(map(str, examples))}"
    return f"rank {rank}, micro-batch {number}: {what}{where}"
