"""Upper bounds with a learned Gaussian q(y | x): what they share, leave-one-out and variational."""

from __future__ import annotations

from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators.samples import check_precision, check_samples

__all__ = ["GaussianConditional", "L1OutUB", "VarUB"]

PUBLISHED_RANGE = (-1.0, 1.0)


class GaussianConditional(nn.Module):
    """``q(y | x) = N(p_mu(x), e^p_logvar(x))``: two networks with one hidden layer of ``width`` each.

    ``p_logvar`` ends in a Tanh, as in public code. ``logvar_range`` stretches what it returns.
    """

    def __init__(self, x_dim: int, y_dim: int, width: int, logvar_range: tuple[float, float]) -> None:
        super().__init__()
        checks.positive_integer("x_dim", x_dim)
        checks.positive_integer("y_dim", y_dim)
        low, high = logvar_range
        checks.number("logvar_range[0]", low)
        checks.number("logvar_range[1]", high)
        if low >= high:
            raise ValueError(f"`logvar_range` was {logvar_range}; it must be (low, high) with low < high: swap them")
        self.x_dim, self.y_dim, self.logvar_range = x_dim, y_dim, (low, high)
        self.p_mu = nn.Sequential(nn.Linear(x_dim, width), nn.ReLU(), nn.Linear(width, y_dim))
        self.p_logvar = nn.Sequential(nn.Linear(x_dim, width), nn.ReLU(), nn.Linear(width, y_dim), nn.Tanh())

    def get_mu_logvar(self, x_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of ``q(. | x)``: two ``[N, y_dim]``."""
        mu, logvar = self.p_mu(x_samples), self.p_logvar(x_samples)
        low, high = self.logvar_range
        if self.logvar_range != PUBLISHED_RANGE:
            logvar = (high + low) / 2 + (high - low) / 2 * logvar
        return mu, logvar

    def loglikeli(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``mean_n sum_d [ -(mu - y)^2 / e^logvar - logvar ]``."""
        return functional.gaussian_log_likelihood(*self._conditional(x_samples, y_samples), y_samples)

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``-loglikeli``: what q is fitted with, by an optimiser of its own."""
        return -self.loglikeli(x_samples, y_samples)

    def _conditional(self, x_samples: Tensor, y_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance at checked samples."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        check_precision(x_samples, next(self.parameters()))
        return self.get_mu_logvar(x_samples)

    def extra_repr(self) -> str:
        return f"logvar_range={self.logvar_range}"


def half_width(hidden_size: int) -> int:
    """The width of one network of q: public code halves ``hidden_size`` between the two."""
    checks.positive_integer("hidden_size", hidden_size)
    if hidden_size < 2:
        raise ValueError(f"`hidden_size` was {hidden_size}; each network is half as wide: it must be at least 2")
    return hidden_size // 2


class L1OutUB(GaussianConditional):
    """Leave-one-out upper bound on I(X; Y), where q is the true conditional: the other samples stand for p(y).

    ``mean_i [ log q(y_i | x_i) - log 1/(N-1) sum_{j != i} q(y_i | x_j) ]``; see
    :func:`infobert_fast.functional.leave_one_out`. Memory stays linear in N.

    Args:
        x_dim, y_dim: widths of the samples.
        hidden_size: twice the width of each of q's two networks.
        logvar_range: what q's log-variance can reach. The default is that of public code. Where the noise in y has a
            variance below e^-1 = .37 or above e = 2.7, q cannot be the truth: widen it, ``(-10.0, 10.0)``.

    Raises:
        TypeError, ValueError: for samples or settings that do not fit, by name.
    """

    def __init__(
        self, x_dim: int, y_dim: int, hidden_size: int, *, logvar_range: tuple[float, float] = PUBLISHED_RANGE
    ) -> None:
        super().__init__(x_dim, y_dim, half_width(hidden_size), logvar_range)

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The bound, a scalar in nats; at least two samples."""
        return functional.leave_one_out(*self._conditional(x_samples, y_samples), y_samples)


class VarUB(GaussianConditional):
    """Variational upper bound on I(X; Y) against a standard normal marginal, where q is the true conditional.

    ``mean_n KL( N(mu_n, e^logvar_n) || N(0, 1) )``, in closed form, summed over the dimensions of y; see
    :func:`infobert_fast.functional.variational_upper_bound`. ``y_samples`` only serve to fit q. (CLUB's public code
    averages over the dimensions, which is ``y_dim`` times smaller and no bound:
    ``infobert_fast.dropin.mi_estimators.VarUB``.)

    Args:
        x_dim, y_dim, hidden_size, logvar_range: as of :class:`L1OutUB`.

    Raises:
        TypeError, ValueError: for samples or settings that do not fit, by name.
    """

    def __init__(
        self, x_dim: int, y_dim: int, hidden_size: int, *, logvar_range: tuple[float, float] = PUBLISHED_RANGE
    ) -> None:
        super().__init__(x_dim, y_dim, half_width(hidden_size), logvar_range)

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The bound, a scalar in nats."""
        return functional.variational_upper_bound(*self._conditional(x_samples, y_samples))
