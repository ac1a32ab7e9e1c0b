"""Lower bounds with the concatenating MLP critic: InfoNCE, NWJ, MINE's Donsker-Varadhan bound and SMILE's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.functional import Implementation, Precision

__all__ = ["MINE", "NWJ", "SMILE", "InfoNCE"]


class _LowerBound(nn.Module):
    """What the bounds share: the critic's widths, how it is computed, and the checks of its samples."""

    def __init__(self, x_dim: int, y_dim: int, implementation: Implementation, precision: Precision) -> None:
        super().__init__()
        checks.positive_integer("x_dim", x_dim)
        checks.positive_integer("y_dim", y_dim)
        checks.choice("implementation", implementation, functional.IMPLEMENTATIONS)
        checks.choice("precision", precision, functional.PRECISIONS)
        self.x_dim, self.y_dim = x_dim, y_dim
        self.implementation: Implementation = implementation
        self.precision: Precision = precision

    def _network(self, hidden: int, *last: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.x_dim + self.y_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1), *last)

    def _check(self, x_samples: Tensor, y_samples: Tensor) -> None:
        checks.matrix("x_samples", x_samples, width=self.x_dim)
        checks.matrix("y_samples", y_samples, width=self.y_dim)

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """Minus the bound: what a critic trained for the estimate alone minimises."""
        bound: Tensor = self(x_samples, y_samples)
        return -bound

    def extra_repr(self) -> str:
        return f"implementation={self.implementation!r}, precision={self.precision!r}"


class InfoNCE(_LowerBound):
    """InfoNCE lower bound on I(X; Y) with the concatenating MLP critic of InfoBERT.

    ``F(x, y) = softplus(w2 . relu(W1 [x; y] + b1) + b2)``; see :func:`infobert_fast.functional.info_nce` for the bound.
    Parameters carry the reference's names (``F_func.0.weight``, ``F_func.0.bias``, ``F_func.2.weight``,
    ``F_func.2.bias``), so its checkpoints load. To train an encoder, add ``-alpha * critic(local, global_)`` to the
    loss.

    Args:
        x_dim, y_dim: widths of local and global features.
        hidden_dim: width of the critic.
        implementation, precision: passed on to :func:`infobert_fast.functional.info_nce`.

    Example:
        >>> critic = InfoNCE(768, 768)
        >>> bound = critic(torch.randn(64, 768), torch.randn(64, 768))  # nats, at most log 64
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden_dim: int = 300,
        *,
        implementation: Implementation = "auto",
        precision: Precision = "exact",
    ) -> None:
        checks.positive_integer("hidden_dim", hidden_dim)
        super().__init__(x_dim, y_dim, implementation, precision)
        self.F_func = self._network(hidden_dim, nn.Softplus())

    def forward(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        *,
        local_index: Tensor | None = None,
        pair_index: Tensor | None = None,
        chunk_size: int | None = None,
        pairs_of_ranks: Sequence[int] | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats, over pairs ``(x_samples[local_index[p]], y_samples[pair_index[p]])``.

        ``y_samples`` may hold each distinct global row once, ``pair_index`` saying which row each pair uses.
        ``pairs_of_ranks`` makes the pairs of all ranks negatives of each other. Gradients flow into both samples and
        the critic.
        """
        self._check(x_samples, y_samples)
        return functional.info_nce(
            x_samples,
            y_samples,
            *self.F_func.parameters(),
            local_index=local_index,
            pair_index=pair_index,
            chunk_size=chunk_size,
            pairs_of_ranks=pairs_of_ranks,
            implementation=self.implementation,
            precision=self.precision,
        )


class NWJ(_LowerBound):
    """NWJ lower bound on I(X; Y), unlike InfoNCE's not bounded by log N, at the price of its variance.

    ``mean_i T(x_i, y_i) - mean_ij exp(T(x_j, y_i) - 1)`` with ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``, the second
    mean over pairings that are no pairs; see :func:`infobert_fast.functional.nwj`. Parameters are named as in CLUB's
    public code: ``F_func.0.weight``, ...

    Args:
        x_dim, y_dim: widths of the samples.
        hidden_size: width of the critic.
        include_pairs: count the pairs among the pairings, as public code does; the estimate is then at most log N.
        implementation, precision: passed on to :func:`infobert_fast.functional.nwj`.

    Example:
        >>> critic = NWJ(20, 20, 64)
        >>> critic.learning_loss(x, y).backward()  # fit T, then read critic(x, y) on fresh samples
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden_size: int,
        *,
        include_pairs: bool = False,
        implementation: Implementation = "auto",
        precision: Precision = "exact",
    ) -> None:
        checks.positive_integer("hidden_size", hidden_size)
        super().__init__(x_dim, y_dim, implementation, precision)
        self.F_func = self._network(hidden_size)
        self.include_pairs = include_pairs

    def forward(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        *,
        local_index: Tensor | None = None,
        pair_index: Tensor | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats; indices as in :meth:`InfoNCE.forward`."""
        self._check(x_samples, y_samples)
        return functional.nwj(
            x_samples,
            y_samples,
            *self.F_func.parameters(),
            local_index=local_index,
            pair_index=pair_index,
            include_pairs=self.include_pairs,
            implementation=self.implementation,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"include_pairs={self.include_pairs}, {super().extra_repr()}"


class MINE(_LowerBound):
    """MINE: the Donsker-Varadhan lower bound on I(X; Y), over all pairs rather than over one shuffle.

    ``mean_i T(x_i, y_i) - log mean_ij exp T(x_j, y_i)`` with ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``, the second
    mean over pairings that are no pairs; see :func:`infobert_fast.functional.donsker_varadhan`. Public code draws one
    partner a row, whose mean of ``exp T`` has the same expectation and more variance. On a batch the logarithm of a
    mean makes the estimate, and its gradient, biased, upwards for the bound (``include_pairs=True`` lowers it by more).
    Parameters are named as in CLUB's public code: ``T_func.0.weight``, ...

    Args:
        x_dim, y_dim: widths of the samples.
        hidden_size: width of the critic.
        include_pairs: count the pairs among the pairings, as public code does; the estimate is then at most log N.
        implementation, precision: passed on to :func:`infobert_fast.functional.donsker_varadhan`.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden_size: int,
        *,
        include_pairs: bool = False,
        implementation: Implementation = "auto",
        precision: Precision = "exact",
    ) -> None:
        checks.positive_integer("hidden_size", hidden_size)
        super().__init__(x_dim, y_dim, implementation, precision)
        self.T_func = self._network(hidden_size)
        self.include_pairs = include_pairs

    def forward(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        *,
        local_index: Tensor | None = None,
        pair_index: Tensor | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats; indices as in :meth:`InfoNCE.forward`."""
        self._check(x_samples, y_samples)
        return functional.donsker_varadhan(
            x_samples,
            y_samples,
            *self.T_func.parameters(),
            local_index=local_index,
            pair_index=pair_index,
            include_pairs=self.include_pairs,
            implementation=self.implementation,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"include_pairs={self.include_pairs}, {super().extra_repr()}"


class SMILE(_LowerBound):
    """SMILE: MINE's bound whose pairings' scores are clipped, which trades its variance for a bias.

    ``mean_i T(x_i, y_i) - log mean_ij exp clip(T(x_j, y_i), -clip, clip)`` with
    ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2``; see :func:`infobert_fast.functional.smile`. Song and Ermon train the
    critic by another objective, as :class:`InfoNCE`'s, and clip where they estimate; :meth:`learning_loss` is minus the
    clipped estimate.

    Args:
        x_dim, y_dim: widths of the samples.
        hidden_size: width of the critic.
        clip: scores of pairings enter the sum as the nearest number in ``[-clip, clip]``; in nats.
        include_pairs, implementation, precision: as in :class:`MINE`.
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        hidden_size: int,
        *,
        clip: float = 5.0,
        include_pairs: bool = False,
        implementation: Implementation = "auto",
        precision: Precision = "exact",
    ) -> None:
        checks.positive_integer("hidden_size", hidden_size)
        checks.number("clip", clip, low=1e-6, advice="pairings' scores are cut to [-clip, clip]; MINE cuts none")
        super().__init__(x_dim, y_dim, implementation, precision)
        self.T_func = self._network(hidden_size)
        self.clip, self.include_pairs = clip, include_pairs

    def forward(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        *,
        local_index: Tensor | None = None,
        pair_index: Tensor | None = None,
    ) -> Tensor:
        """The estimate, a scalar in nats; indices as in :meth:`InfoNCE.forward`."""
        self._check(x_samples, y_samples)
        return functional.smile(
            x_samples,
            y_samples,
            *self.T_func.parameters(),
            clip=self.clip,
            local_index=local_index,
            pair_index=pair_index,
            include_pairs=self.include_pairs,
            implementation=self.implementation,
            precision=self.precision,
        )

    def extra_repr(self) -> str:
        return f"clip={self.clip}, include_pairs={self.include_pairs}, {super().extra_repr()}"
