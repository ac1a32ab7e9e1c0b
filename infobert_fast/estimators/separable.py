"""InfoNCE with a separable critic as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.functional import Implementation, SeparableCritic, Side
from infobert_fast.kernels.pairs import Terms

__all__ = ["SeparableInfoNCE"]


class SeparableInfoNCE(nn.Module):
    """InfoNCE lower bound on I(X; Y) with a dot-product, cosine or bilinear critic, in linear memory.

    ``F(x, y) = <x, y> / t`` ("dot"), ``<x, y> / (t |x| |y|)`` ("cosine") or ``x^T W y / t`` ("bilinear"), t the
    temperature; see :func:`infobert_fast.functional.separable_info_nce` for the bound. Each row of the first argument
    picks its partner among the rows of the second: :meth:`learning_loss` is SimCSE's
    (``"cosine", temperature=0.05``), and CLIP's with ``"cosine", learn_temperature=True, symmetric=True``.

    Args:
        critic: as above.
        temperature: None means 0.07 for the cosine critic, where CLIP starts, and 1 for the others.
        learn_temperature: keep ``log(1 / temperature)`` as the parameter ``logit_scale``, as CLIP does. CLIP also keeps
            it at most log 100, after each step: ``critic.logit_scale.data.clamp_(max=math.log(100))``.
        over: the side whose rows the sums run over; ``"local"``, the first argument, as :class:`InfoNCE` does.
        symmetric: average the bounds of both directions; ``over`` then has no effect.
        x_dim, y_dim: widths of local and global features; the bilinear critic's ``weight`` is ``[x_dim, y_dim]``. The
            others need none.
        implementation: passed on to :func:`infobert_fast.functional.separable_info_nce`.

    Example:
        >>> critic = SeparableInfoNCE("cosine", learn_temperature=True, symmetric=True)
        >>> loss = critic.learning_loss(images, texts)  # CLIP's, of encoded images and texts
    """

    def __init__(
        self,
        critic: SeparableCritic = "dot",
        *,
        temperature: float | None = None,
        learn_temperature: bool = False,
        over: Side = "global_",
        symmetric: bool = False,
        x_dim: int | None = None,
        y_dim: int | None = None,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__()
        checks.choice("critic", critic, functional.SEPARABLE_CRITICS)
        checks.choice("over", over, functional.SIDES)
        checks.choice("implementation", implementation, functional.IMPLEMENTATIONS)
        if temperature is None:
            temperature = 0.07 if critic == "cosine" else 1.0
        checks.number("temperature", temperature, low=1e-6, advice="scores are divided by it")
        self.critic: SeparableCritic = critic
        self.over: Side = over
        self.symmetric = symmetric
        self.implementation: Implementation = implementation
        self.logit_scale: nn.Parameter | None = None
        self.scale = 1 / temperature
        if learn_temperature:
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.weight: nn.Parameter | None = None
        if critic == "bilinear":
            checks.positive_integer("x_dim", x_dim, advice="the bilinear critic's matrix needs both widths")
            checks.positive_integer("y_dim", y_dim, advice="the bilinear critic's matrix needs both widths")
            assert x_dim is not None
            assert y_dim is not None
            # scores of order 1 for features of order 1
            self.weight = nn.Parameter(torch.randn(x_dim, y_dim) / math.sqrt(x_dim * y_dim))

    def forward(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        *,
        local_index: Tensor | None = None,
        pair_index: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats, over pairs ``(x_samples[local_index[p]], y_samples[pair_index[p]])``; pairs of
        equal ``labels`` are no negatives of each other.
        """
        return functional.separable_info_nce(
            x_samples,
            y_samples,
            critic=self.critic,
            weight=self.weight,
            scale=self.scale if self.logit_scale is None else self.logit_scale.exp(),
            over=self.over,
            symmetric=self.symmetric,
            local_index=local_index,
            pair_index=pair_index,
            labels=labels,
            implementation=self.implementation,
        )

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor, **which: Tensor | None) -> Tensor:
        """The cross-entropy to minimise, ``log n_i`` less the bound; indices and labels as in :meth:`forward`.

        It is the bound's negative up to a constant where there are no labels; with labels each pair has its own n_i.
        """
        labels = which.get("labels")
        bound: Tensor = self(x_samples, y_samples, **which)
        sizes = (which.get("local_index"), which.get("pair_index"))
        pairs = next((len(index) for index in sizes if index is not None), len(x_samples))
        number = Terms(labels, labels, keep_pair=True).number(pairs)
        if isinstance(number, int):
            return math.log(number) - bound
        return number.to(bound.dtype).log().mean() - bound

    def extra_repr(self) -> str:
        learned = ", learn_temperature=True" if self.logit_scale is not None else f", temperature={1 / self.scale:g}"
        side = "symmetric=True" if self.symmetric else f"over={self.over!r}"
        return f"{self.critic!r}{learned}, {side}, implementation={self.implementation!r}"
