"""FreeLB's adversary: where a step's perturbation starts and how it climbs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from infobert_fast import checks, functional
from infobert_fast.functional import NormType

__all__ = ["FreeLB"]


@dataclass(frozen=True)
class FreeLB:
    """The perturbation of one optimisation step: ``adv_steps`` passes with an ascent between each two of them.

    ``adv_steps = 1`` with ``adv_init_mag = 0`` is standard fine-tuning. The perturbation lives on the word embeddings,
    before positions, LayerNorm and dropout, and is zero at padding. See :func:`infobert_fast.functional.freelb_init`
    and :func:`infobert_fast.functional.freelb_step` for the formulas.

    Args:
        adv_lr: length of an ascent.
        adv_init_mag: magnitude of the random start.
        adv_max_norm: radius of the projection, 0 for none.
        adv_steps: passes K of a step.
        norm_type: ``"l2"`` or ``"linf"``.
        clean_pass: one more pass, the first, without a perturbation; the adv_steps perturbed ones follow from their
            random start as without it. All K + 1 weigh the same.

    Raises:
        ValueError: for negative magnitudes, fewer than one step, or an unknown norm.
    """

    adv_lr: float = 0.0
    adv_init_mag: float = 0.0
    adv_max_norm: float = 0.0
    adv_steps: int = 1
    norm_type: NormType = "l2"
    clean_pass: bool = False

    def __post_init__(self) -> None:
        checks.number("adv_lr", self.adv_lr, low=0.0)
        checks.number("adv_init_mag", self.adv_init_mag, low=0.0)
        checks.number("adv_max_norm", self.adv_max_norm, low=0.0, advice="0 means no projection")
        checks.positive_integer("adv_steps", self.adv_steps, advice="1 with adv_init_mag 0 is standard fine-tuning")
        checks.choice("norm_type", self.norm_type, functional.NORM_TYPES)
        if self.clean_pass and not self.perturbs:
            raise ValueError(
                "`adv_clean_pass` was True without an adversary, whose one pass is clean already: leave it False, or "
                "raise `adv_steps` or `adv_init_mag`"
            )

    @property
    def passes(self) -> int:
        """How many forwards and backwards a step takes."""
        return self.adv_steps + self.clean_pass

    @property
    def perturbs(self) -> bool:
        """Whether any pass sees a perturbation other than zero."""
        return self.adv_steps > 1 or self.adv_init_mag > 0

    def start(
        self, embeddings: Tensor, attention_mask: Tensor, seed: int, sentence_ids: Tensor | None = None
    ) -> Tensor:
        """The first delta, ``[batch, length, d]``: a sentence's is a function of ``seed`` and its id (its place in the
        batch where ``sentence_ids`` is None), the same on every device; the generators are left alone.
        """
        return functional.freelb_init(
            embeddings, attention_mask, self.adv_init_mag, self.norm_type, seed=seed, sentence_ids=sentence_ids
        )

    def ascend(self, delta: Tensor, grad: Tensor, attention_mask: Tensor) -> Tensor:
        """The next delta, up the gradient of the loss."""
        return functional.freelb_step(delta, grad, attention_mask, self.adv_lr, self.adv_max_norm, self.norm_type)
