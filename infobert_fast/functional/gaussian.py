"""Upper bounds with a learned Gaussian conditional: CLUB and the variational bound in closed form, leave-one-out in
linear memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from infobert_fast import checks, reference
from infobert_fast.functional.streaming import block_elements

__all__ = [
    "gaussian_club",
    "gaussian_club_sampled",
    "gaussian_log_likelihood",
    "leave_one_out",
    "variational_upper_bound",
]


def gaussian_log_likelihood(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """Log-likelihood, up to constants, of ``q(y | x) = N(mu, e^logvar)``: ``mean_n sum_d [ -(mu - y)^2 / e^logvar -
    logvar ]``.

    All ``[N, d]``. Source: CLUB's ``loglikeli``; maximised by the learned bound's own optimiser.
    """
    return reference.gaussian_log_likelihood(*_rows(mu, logvar, y))


def gaussian_club_sampled(mu: Tensor, logvar: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Learned CLUB, sampled: ``mean_n sum_d [ (mu_n - y_index[n])^2 - (mu_n - y_n)^2 ] / (2 e^logvar_n)``. All ``[N,
    d]``.
    """
    mu, logvar, y = _rows(mu, logvar, y)
    checks.index("index", index, y.shape[0], "y", y.device)
    if index.shape[0] != y.shape[0]:
        raise ValueError(f"`index` holds {index.shape[0]} entries and `y` {y.shape[0]} rows; give one for each row")
    return (((mu - F.embedding(index, y)).square() - (mu - y).square()) / (2 * logvar.exp())).sum(-1).mean()


def gaussian_club(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """Learned CLUB over all pairs in O(N d), by ``mean_j (y_j - mu_i)^2 = Var(y) + (mean(y) - mu_i)^2`` per dimension.

    The expanded form ``E[y^2] - 2 mu E[y] + mu^2`` cancels where y has an offset; this one does not.
    """
    mu, logvar, y = _rows(mu, logvar, y)
    mean = y.mean(0)
    spread = (y - mean).square().mean(0)
    return ((spread + (mean - mu).square() - (mu - y).square()) / (2 * logvar.exp())).sum(-1).mean()


def leave_one_out(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """Leave-one-out upper bound ``mean_i [ log q_i(y_i) - log 1/(N-1) sum_{j != i} q_j(y_i) ]``, ``q_j = N(mu_j,
    e^logvar_j)``.

    An upper bound on I(X; Y) where q is the true conditional: the mixture of the others stands for p(y). The N x N x d
    differences are formed block by block, and again for the gradient: memory is O(N d). Written as a matrix product,
    ``y^2 - 2 y mu + mu^2``, they would cancel where y comes near mu, which is where the sum has its mass.

    Args:
        mu, logvar, y: ``[N, d]`` of any float dtypes, N at least 2.

    Returns:
        A scalar in nats, float32 at least.

    Raises:
        ValueError: for shapes that differ, or a single sample.

    Source: Poole et al. 2019; Cheng et al. 2020 (CLUB), "L1Out".
    """
    mu, logvar, y = _rows(mu, logvar, y)
    n, width = y.shape
    if n < 2:
        raise ValueError("`y` holds 1 row; leaving it out leaves none: give at least two samples")
    precision = torch.exp(-logvar / 2)
    constant = logvar.sum(1) / 2
    rows = max(1, block_elements(y.device) // (n * width))
    blocks = [
        # Recomputed in the backward: what autograd would keep of all blocks is N x N x d.
        checkpoint(_log_ratio, mu, precision, constant, y, i, min(i + rows, n), use_reentrant=False)
        for i in range(0, n, rows)
    ]
    return torch.cat(blocks).mean() + math.log(n - 1)


def _log_ratio(mu: Tensor, precision: Tensor, constant: Tensor, y: Tensor, start: int, stop: int) -> Tensor:
    """``log q_i(y_i) - logsumexp_{j != i} log q_j(y_i)`` of the rows from start to stop."""
    log_q = -((y[start:stop, None] - mu) * precision).square().sum(2) / 2 - constant
    own = torch.arange(start, stop, device=y.device).unsqueeze(1)
    positive = log_q.gather(1, own)
    return positive.squeeze(1) - torch.logsumexp(log_q.scatter(1, own, -torch.inf), 1)


def variational_upper_bound(mu: Tensor, logvar: Tensor) -> Tensor:
    """Variational upper bound ``mean_n KL( N(mu_n, e^logvar_n) || N(0, 1) )``, summed over dimensions.

    ``= mean_n sum_d 1/2 (mu^2 + e^logvar - 1 - logvar)``: an upper bound on I(X; Y), where q is the true conditional,
    for any marginal in place of p(y), here the standard normal.

    Args:
        mu, logvar: ``[N, d]``.

    Returns:
        A scalar in nats, float32 at least.

    Source: Alemi et al. 2017; Cheng et al. 2020 (CLUB), "VUB".
    """
    mu, logvar, _ = _rows(mu, logvar, mu)
    return (mu.square() + torch.expm1(logvar) - logvar).sum(1).mean() / 2


def _rows(mu: Tensor, logvar: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three ``[N, d]`` of one dtype, float32 at least: under autocast q's output is half precision and y may not be."""
    checks.matrix("y", y)
    for name, value in (("mu", mu), ("logvar", logvar)):
        checks.matrix(name, value)
        if value.shape != y.shape:
            raise ValueError(f"`{name}` has shape {list(value.shape)}; it must be that of `y`, {list(y.shape)}")
    wide = torch.promote_types(torch.promote_types(mu.dtype, y.dtype), torch.float32)
    return mu.to(wide), logvar.to(wide), y.to(wide)
