"""CLUB upper bounds: without a network, as InfoBERT uses it, and learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators.gaussian import PUBLISHED_RANGE, GaussianConditional, half_width
from infobert_fast.estimators.samples import check_samples, draw_partners, rows_of

__all__ = ["CLUB", "CLUBv2"]


class CLUBv2(nn.Module):
    """InfoBERT's bottleneck: half the mean squared distance of two rows of y, the trace of their covariance.

    x takes no part in it. The value is the same whether x determines y, is independent of it or is None, and c y in
    place of y multiplies it by c^2. So it is no estimate of I(X; Y): it is a penalty on how far rows of y lie apart. It
    bounds from above what ``y + N(0, I)`` tells of y: it is CLUB with the noise of that channel as q. For a bound that
    depends on x take :class:`CLUB`, :class:`L1OutUB` or :class:`VarUB`.

    ``forward`` and ``mi_est`` are exact and cost O(M d); ``mi_est_sample`` draws one partner a row.

    Args:
        x_dim, lr: accepted as the reference's.
        y_dim: width of y.
        beta: the weight ``update`` multiplies with.

    Source: InfoBERT (Wang et al. 2021), section 3.2.
    """

    def __init__(self, x_dim: int, y_dim: int, lr: float = 1e-3, beta: float = 0) -> None:
        super().__init__()
        checks.positive_integer("y_dim", y_dim)
        self.y_dim = y_dim
        self.version = 2
        self.beta = beta

    def forward(self, x_samples: Tensor | None, y_samples: Tensor) -> Tensor:
        """:meth:`mi_est`."""
        return self.mi_est(x_samples, y_samples)

    def mi_est(self, x_samples: Tensor | None, y_samples: Tensor) -> Tensor:
        """``mean_ij 1/2 ||y_i - y_j||^2`` over all pairs, in nats."""
        check_samples(None, None, y_samples, self.y_dim)
        return functional.club(y_samples)

    def mi_est_sample(
        self, x_samples: Tensor | None, y_samples: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """``mean_m 1/2 ||y_m - y_r(m)||^2``, r(m) uniform with replacement, drawn from ``generator`` or torch's own."""
        check_samples(None, None, y_samples, self.y_dim)
        return functional.club_sampled(y_samples, draw_partners(y_samples, generator))

    def update(
        self,
        x_samples: Tensor | None,
        y_samples: Tensor,
        steps: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``beta * mi_est_sample``, what the reference adds to its loss; ``steps`` has no effect."""
        return self.beta * self.mi_est_sample(x_samples, y_samples, generator=generator)


class CLUB(GaussianConditional):
    """Learned CLUB upper bound on I(X; Y): ``q(y | x) = N(p_mu(x), e^p_logvar(x))`` with its own Adam.

    Call :meth:`update` once a step with the features: it fits q on detached inputs, then returns ``beta`` times the
    bound with q frozen, so that the likelihood step never reaches the encoder and the bound never reaches q. (The
    reference lets the likelihood's gradient leak into the encoder.)

    The bound holds where q is the true conditional. The published defaults rarely let it be: the log-variance stays in
    (-1, 1), and the hidden layers are as wide as y, one unit for a scalar.

    Args:
        x_dim, y_dim: widths.
        lr: of q's Adam, ``optimizer``; at most 1.
        beta: the weight ``update`` multiplies with.
        hidden_size: twice the width of each of q's two networks, as of the other bounds; None is the published width,
            ``y_dim``.
        logvar_range: what q's log-variance can reach; see :class:`L1OutUB`.

    Attributes:
        version: 0 takes ``[N, x_dim]`` and ``[N, y_dim]`` as they are; 1 flattens leading dimensions first.

    Raises:
        TypeError, ValueError: for samples or settings that do not fit, by name.

    Example:
        >>> club = CLUB(20, 20, hidden_size=64, logvar_range=(-10.0, 10.0))
        >>> club.learning_loss(x, y).backward()  # or club.update(x, y), which takes the step itself
        >>> bound = club(x, y)
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        lr: float = 1e-3,
        beta: float = 0,
        *,
        hidden_size: int | None = None,
        logvar_range: tuple[float, float] = PUBLISHED_RANGE,
    ) -> None:
        checks.positive_integer("y_dim", y_dim)
        super().__init__(x_dim, y_dim, y_dim if hidden_size is None else half_width(hidden_size), logvar_range)
        checks.number("lr", lr, low=0.0, high=1.0, advice="the width of q's networks is `hidden_size`, by name")
        self.version = 0
        self.beta = beta
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """:meth:`mi_est`."""
        return self.mi_est(x_samples, y_samples)

    def mi_est(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The bound with every y as a negative, in O(N d), a scalar in nats."""
        return functional.gaussian_club(*self._conditional(x_samples, y_samples), y_samples)

    def mi_est_sample(
        self, x_samples: Tensor, y_samples: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The bound with one negative a row, drawn uniformly from ``generator`` or torch's own."""
        conditional = self._conditional(x_samples, y_samples)
        return functional.gaussian_club_sampled(*conditional, y_samples, draw_partners(y_samples, generator))

    def update(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        steps: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``steps`` likelihood steps (None: one) on detached inputs, then ``beta * mi_est_sample`` with q frozen."""
        checks.positive_integer("steps", steps, optional=True)
        if self.version == 1:
            x_samples, y_samples = rows_of("x_samples", x_samples), rows_of("y_samples", y_samples)
        for _ in range(steps or 1):
            self.fit_step(x_samples, y_samples)
        return self.beta * self.frozen_estimate(x_samples, y_samples, generator=generator)

    def fit_step(self, x_samples: Tensor, y_samples: Tensor, *, average: bool = False) -> None:
        """One step of q's optimiser on the negative log-likelihood of the samples, detached; ``average`` takes the
        gradient's mean over all ranks.
        """
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        device = x_samples.device.type
        self.optimizer.zero_grad()
        # Without autocast's cache, which would hold q's weights of before the last step until autocast ends.
        with (
            torch.enable_grad(),
            torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False),
        ):
            (-self.loglikeli(x_samples.detach(), y_samples.detach())).backward()
        if average:
            for parameter in self.parameters():
                assert parameter.grad is not None
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad.div_(torch.distributed.get_world_size())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def frozen_estimate(
        self,
        x_samples: Tensor,
        y_samples: Tensor,
        *,
        sampled: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``mi_est_sample`` (or ``mi_est``) whose gradient reaches the samples and never q."""
        flags = [parameter.requires_grad for parameter in self.parameters()]
        self.requires_grad_(False)
        try:
            if sampled:
                return self.mi_est_sample(x_samples, y_samples, generator=generator)
            return self.mi_est(x_samples, y_samples)
        finally:
            for parameter, flag in zip(self.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
