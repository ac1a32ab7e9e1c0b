"""Upper bounds with a learned Gaussian q(y | x): leave-one-out and variational."""

from __future__ import annotations

from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators.samples import check_samples

__all__ = ["L1OutUB", "VarUB"]


class _GaussianConditional(nn.Module):
    """``q(y | x) = N(p_mu(x), e^p_logvar(x))``, two networks of width ``hidden_size // 2`` as in CLUB's public code."""

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int) -> None:
        super().__init__()
        checks.positive_integer("x_dim", x_dim)
        checks.positive_integer("y_dim", y_dim)
        checks.positive_integer("hidden_size", hidden_size)
        if hidden_size < 2:
            raise ValueError(f"`hidden_size` was {hidden_size}; each network is half as wide: it must be at least 2")
        self.x_dim, self.y_dim = x_dim, y_dim
        half = hidden_size // 2
        self.p_mu = nn.Sequential(nn.Linear(x_dim, half), nn.ReLU(), nn.Linear(half, y_dim))
        self.p_logvar = nn.Sequential(nn.Linear(x_dim, half), nn.ReLU(), nn.Linear(half, y_dim), nn.Tanh())

    def get_mu_logvar(self, x_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of ``q(. | x)``: two ``[N, y_dim]``."""
        return self.p_mu(x_samples), self.p_logvar(x_samples)

    def loglikeli(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``mean_n sum_d [ -(mu - y)^2 / e^logvar - logvar ]``."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.gaussian_log_likelihood(*self.get_mu_logvar(x_samples), y_samples)

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``-loglikeli``: what q is fitted with, by an optimiser of its own."""
        return -self.loglikeli(x_samples, y_samples)


class L1OutUB(_GaussianConditional):
    """Leave-one-out upper bound on I(X; Y), where q is the true conditional: the other samples stand for p(y).

    ``mean_i [ log q(y_i | x_i) - log 1/(N-1) sum_{j != i} q(y_i | x_j) ]``; see
    :func:`infobert_fast.functional.leave_one_out`. Memory stays linear in N.

    Args:
        x_dim, y_dim: widths of the samples.
        hidden_size: twice the width of each of q's two networks.
    """

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The bound, a scalar in nats; at least two samples."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.leave_one_out(*self.get_mu_logvar(x_samples), y_samples)


class VarUB(_GaussianConditional):
    """Variational upper bound on I(X; Y) against a standard normal marginal, where q is the true conditional.

    ``mean_n KL( N(mu_n, e^logvar_n) || N(0, 1) )``, in closed form; see
    :func:`infobert_fast.functional.variational_upper_bound`. ``y_samples`` only serve to fit q. (CLUB's public code
    averages over the dimensions of y too, which is ``y_dim`` times smaller and no bound.)

    Args:
        x_dim, y_dim: widths of the samples.
        hidden_size: twice the width of each of q's two networks.
    """

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The bound, a scalar in nats."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.variational_upper_bound(*self.get_mu_logvar(x_samples))
