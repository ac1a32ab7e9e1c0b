"""The estimators of CLUB's public ``mi_estimators.py``: same names, arguments, state dicts, values and random draws.

``forward(x, y)`` is the estimate, a scalar in nats. ``learning_loss(x, y)`` is what an optimiser minimises: minus the
bound for a critic, q's negative log-likelihood for an upper bound. Samples are ``[N, x_dim]`` and ``[N, y_dim]`` of the
weights' dtype. What would need N x N x d there takes memory linear in N here.

Values are those of the public code even where it departs from the paper: see :class:`L1OutUB`, :class:`VarUB`,
:class:`NWJ` and :class:`InfoNCE`. Source: Cheng et al. 2020; formulas are restated from it and from the code's
behaviour.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators.gaussian import PUBLISHED_RANGE, GaussianConditional, half_width
from infobert_fast.estimators.samples import check_precision, check_samples

__all__ = ["CLUB", "MINE", "NWJ", "CLUBForCategorical", "CLUBMean", "CLUBSample", "InfoNCE", "L1OutUB", "VarUB"]


class _Gaussian(GaussianConditional):
    """q with networks of width ``hidden_size // 2`` and a log-variance in (-1, 1)."""

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int) -> None:
        super().__init__(x_dim, y_dim, half_width(hidden_size), PUBLISHED_RANGE)


class CLUB(_Gaussian):
    """CLUB over all pairs: ``mean_i sum_d [ mean_j (mu_i - y_j)^2 - (mu_i - y_i)^2 ] / (2 e^logvar_i)``, in O(N d)."""

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate."""
        return functional.gaussian_club(*self._conditional(x_samples, y_samples), y_samples)


class CLUBSample(_Gaussian):
    """CLUB with one partner a row, by a permutation that torch's CPU generator draws."""

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate."""
        conditional = self._conditional(x_samples, y_samples)
        partners = torch.randperm(y_samples.shape[0]).to(y_samples.device, non_blocking=True)
        return functional.gaussian_club_sampled(*conditional, y_samples, partners)


class CLUBMean(nn.Module):
    """CLUB over all pairs with ``q(y | x) = N(p_mu(x), 1)``: one linear layer where ``hidden_size`` is None, else a
    hidden layer of that width.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.x_dim, self.y_dim = x_dim, y_dim
        self.p_mu = _layers("x_dim", x_dim, "y_dim", y_dim, hidden_size)

    def get_mu_logvar(self, x_samples: Tensor) -> tuple[Tensor, int]:
        """Mean of ``q(. | x)`` ``[N, y_dim]``, and 0."""
        return self.p_mu(x_samples), 0

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate."""
        mu = self._mean(x_samples, y_samples)
        return functional.gaussian_club(mu, torch.zeros_like(mu), y_samples)

    def loglikeli(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``-mean_n sum_d (mu - y)^2``."""
        mu = self._mean(x_samples, y_samples)
        return functional.gaussian_log_likelihood(mu, torch.zeros_like(mu), y_samples)

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """``-loglikeli``."""
        return -self.loglikeli(x_samples, y_samples)

    def _mean(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        check_precision(x_samples, next(self.parameters()))
        mu: Tensor = self.p_mu(x_samples)
        return mu


class CLUBForCategorical(nn.Module):
    """CLUB for labels: ``mean_i log q(y_i | x_i) - mean_ij log q(y_j | x_i)``, with a classifier q.

    The second mean needs only how often each label occurs: O(N L) for L labels, where the public code builds N x N x L.
    """

    def __init__(self, input_dim: int, label_num: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.input_dim, self.label_num = input_dim, label_num
        self.variational_net = _layers("input_dim", input_dim, "label_num", label_num, hidden_size)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The estimate of I(inputs; labels); ``[N, input_dim]`` and int64 ``[N]``."""
        log_q = F.log_softmax(self._logits(inputs, labels), dim=1)
        count = log_q.new_zeros(self.label_num).scatter_add_(0, labels, log_q.new_ones(labels.shape))
        return log_q.gather(1, labels.unsqueeze(1)).mean() - (log_q.mean(0) * (count / labels.shape[0])).sum()

    def loglikeli(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """``mean_n log q(y_n | x_n)``."""
        return -F.cross_entropy(self._logits(inputs, labels), labels)

    def learning_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """``-loglikeli``."""
        return -self.loglikeli(inputs, labels)

    def _logits(self, inputs: Tensor, labels: Tensor) -> Tensor:
        checks.matrix("inputs", inputs, width=self.input_dim)
        checks.index("labels", labels, self.label_num, "label_num", inputs.device)
        if labels.shape[0] != inputs.shape[0]:
            raise ValueError(f"`inputs` holds {inputs.shape[0]} rows and `labels` {labels.shape[0]}; give one a row")
        logits: Tensor = self.variational_net(inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Critic(nn.Module):
    """What the three lower bounds share."""

    def __init__(self, x_dim: int, y_dim: int) -> None:
        super().__init__()
        checks.positive_integer("x_dim", x_dim)
        checks.positive_integer("y_dim", y_dim)
        self.x_dim, self.y_dim = x_dim, y_dim

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """Minus the bound."""
        bound: Tensor = self(x_samples, y_samples)
        return -bound

    def _network(self, hidden_size: int, *last: nn.Module) -> nn.Sequential:
        checks.positive_integer("hidden_size", hidden_size)
        return nn.Sequential(
            nn.Linear(self.x_dim + self.y_dim, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1), *last
        )


class MINE(_Critic):
    """MINE: ``mean_i T(x_i, y_i) - log mean_i exp T(x_i, y_r(i))``, r drawn with replacement by torch's CPU generator.

    :class:`infobert_fast.MINE` takes all pairs instead of one draw.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int) -> None:
        super().__init__(x_dim, y_dim)
        self.T_func = self._network(hidden_size)

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        n = y_samples.shape[0]
        partners = torch.randint(n, (n,)).to(y_samples.device, non_blocking=True)
        positive, negative = (
            self.T_func(torch.cat([x_samples, y], dim=1)) for y in (y_samples, F.embedding(partners, y_samples))
        )
        return positive.mean() - (torch.logsumexp(negative.flatten(), 0) - math.log(n))


class NWJ(_Critic):
    """NWJ with the pairs themselves among the negatives, as there: at most log N."""

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int) -> None:
        super().__init__(x_dim, y_dim)
        self.F_func = self._network(hidden_size)

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate: ``mean_i T(x_i, y_i) - mean_ij exp(T(x_j, y_i) - 1)``."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.nwj(x_samples, y_samples, *self.F_func.parameters(), include_pairs=True)


class InfoNCE(_Critic):
    """InfoNCE, at most log N: ``mean_i F(x_i, y_i) - mean_i (logsumexp_j F(x_j, y_i) - log N)``, F a softplus."""

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int) -> None:
        super().__init__(x_dim, y_dim)
        self.F_func = self._network(hidden_size, nn.Softplus())

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate."""
        check_samples(x_samples, self.x_dim, y_samples, self.y_dim)
        return functional.info_nce(x_samples, y_samples, *self.F_func.parameters())


class L1OutUB(_Gaussian):
    """What the public class of this name computes: CLUB's estimate minus ``log(1 + e^-20 / (N - 1))``.

    There the mask of a row's own sample is added to a whole N x N table at once instead of to its diagonal.
    :class:`infobert_fast.L1OutUB` leaves the sample out.
    """

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate; at least two samples."""
        conditional = self._conditional(x_samples, y_samples)
        n = y_samples.shape[0]
        if n < 2:
            raise ValueError("`y_samples` holds 1 row; leaving it out leaves none: give at least two samples")
        return functional.gaussian_club(*conditional, y_samples) - math.log1p(math.exp(-20) / (n - 1))


class VarUB(_Gaussian):
    """What the public class of this name computes: the variational bound divided by ``y_dim``.

    There the divergence is averaged over y's dimensions. :class:`infobert_fast.VarUB` sums them, which is the bound.
    """

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate; ``y_samples`` take no part in it."""
        return functional.variational_upper_bound(*self._conditional(x_samples, y_samples)) / self.y_dim


def _layers(input_name: str, inputs: int, output_name: str, outputs: int, hidden: int | None) -> nn.Module:
    """A linear layer, or two with a ReLU between."""
    checks.positive_integer(input_name, inputs)
    checks.positive_integer(output_name, outputs)
    checks.positive_integer("hidden_size", hidden, optional=True)
    if hidden is None:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
