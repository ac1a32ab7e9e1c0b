"""CLUB upper bounds: without a network, as InfoBERT uses it, and learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators.samples import check_samples, draw_partners

__all__ = ["CLUB", "CLUBv2"]


class CLUBv2(nn.Module):
    """Parameter-free CLUB upper bound, the one InfoBERT uses: half the mean squared distance of two rows of y.

    ``x_samples`` takes no part, whatever its shape; it is accepted because callers of the reference pass it.
    ``mi_est`` is exact and costs O(M d); ``mi_est_sample`` draws one partner per row.

    Args:
        x_dim, lr: accepted as the reference's.
        y_dim: width of y.
        beta: the weight ``update`` multiplies with.
    """

    def __init__(self, x_dim: int, y_dim: int, lr: float = 1e-3, beta: float = 0) -> None:
        super().__init__()
        checks.positive_integer("y_dim", y_dim)
        self.y_dim = y_dim
        self.version = 2
        self.beta = beta

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


class CLUB(nn.Module):
    """Learned CLUB upper bound on I(X; Y): ``q(y | x) = N(p_mu(x), e^p_logvar(x))`` with its own Adam.

    Call :meth:`update` once a step with the features: it fits q on detached inputs, then returns ``beta`` times the
    bound with q frozen, so that the likelihood step never reaches the encoder and the bound never reaches q. (The
    reference lets the likelihood's gradient leak into the encoder.)

    Args:
        x_dim, y_dim: widths.
        lr: of q's Adam, ``optimizer``.
        beta: the weight ``update`` multiplies with.

    Attributes:
        version: 0 takes ``[N, x_dim]`` and ``[N, y_dim]`` as they are; 1 flattens leading dimensions first.
    """

    def __init__(self, x_dim: int, y_dim: int, lr: float = 1e-3, beta: float = 0) -> None:
        super().__init__()
        checks.positive_integer("x_dim", x_dim)
        checks.positive_integer("y_dim", y_dim)
        checks.number("lr", lr, low=0.0)
        self.x_dim, self.y_dim = x_dim, y_dim
        self.version = 0
        self.beta = beta
        self.p_mu = nn.Sequential(nn.Linear(x_dim, y_dim), nn.ReLU(), nn.Linear(y_dim, y_dim))
        self.p_logvar = nn.Sequential(nn.Linear(x_dim, y_dim), nn.ReLU(), nn.Linear(y_dim, y_dim), nn.Tanh())
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def get_mu_logvar(self, x_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of ``q(. | x)``: two ``[N, y_dim]``."""
        return self.p_mu(x_samples), self.p_logvar(x_samples)

    def loglikeli(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``mean_n sum_d [ -(mu - y)^2 / e^logvar - logvar ]``."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.gaussian_log_likelihood(*self.get_mu_logvar(x_samples), y_samples)

    def mi_est(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The bound with every y as a negative, in O(N d)."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.gaussian_club(*self.get_mu_logvar(x_samples), y_samples)

    def mi_est_sample(
        self, x_samples: Tensor, y_samples: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The bound with one negative a row, drawn uniformly from ``generator`` or torch's own."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        partners = draw_partners(y_samples, generator)
        return functional.gaussian_club_sampled(*self.get_mu_logvar(x_samples), y_samples, partners)

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
            x_samples, y_samples = x_samples.flatten(0, -2), y_samples.flatten(0, -2)
        for _ in range(steps or 1):
            self.fit_step(x_samples, y_samples)
        return self.beta * self.frozen_estimate(x_samples, y_samples, generator=generator)

    def fit_step(self, x_samples: Tensor, y_samples: Tensor, *, average: bool = False) -> None:
        """One step of q's optimiser on the negative log-likelihood of the samples, detached; ``average`` takes the
        gradient's mean over all ranks.
        """
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
