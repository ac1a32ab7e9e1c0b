"""CLUB's public estimators, restated term by term with every pair formed: what the drop-ins replace, and equal.

Each takes the drop-in module, whose networks it runs, and the samples.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RESTATED", "gaussian", "pairs"]


def gaussian(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return module.p_mu(x), module.p_logvar(x)


def club(module: Any, x: Tensor, y: Tensor) -> Tensor:
    mu, logvar = gaussian(module, x)
    all_pairs = (y.unsqueeze(0) - mu.unsqueeze(1)).square()  # [i, j, d]
    own = all_pairs.diagonal().t()
    return ((all_pairs.mean(1) - own) / (2 * logvar.exp())).sum(1).mean()


def club_sample(module: Any, x: Tensor, y: Tensor) -> Tensor:
    mu, logvar = gaussian(module, x)
    other = y[torch.randperm(len(x)).to(y.device)]
    return (((mu - other).square() - (mu - y).square()) / logvar.exp()).sum(1).mean() / 2


def club_mean(module: Any, x: Tensor, y: Tensor) -> Tensor:
    mu = module.p_mu(x)
    return (((y.unsqueeze(0) - mu.unsqueeze(1)).square().mean(1) - (mu - y).square()) / 2).sum(1).mean()


def club_for_categorical(module: Any, x: Tensor, y: Tensor) -> Tensor:
    logits = module.variational_net(x)
    n, labels = logits.shape
    table = -F.cross_entropy(
        logits.unsqueeze(1).expand(n, n, labels).reshape(-1, labels), y.unsqueeze(0).expand(n, n).flatten(),
        reduction="none",
    ).reshape(n, n)  # fmt: skip
    return table.diagonal().mean() - table.mean()


def mine(module: Any, x: Tensor, y: Tensor) -> Tensor:
    other = y[torch.randint(len(y), (len(y),)).to(y.device)]
    joint, product = (module.T_func(torch.cat([x, rows], 1)) for rows in (y, other))
    return joint.mean() - product.exp().mean().log()


def pairs(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``[i, j]`` of x_j and y_i."""
    n = len(x)
    return network(torch.cat([x.expand(n, n, -1), y.unsqueeze(1).expand(n, n, -1)], 2)).squeeze(2)


def nwj(module: Any, x: Tensor, y: Tensor) -> Tensor:
    table = pairs(module.F_func, x, y)
    return table.diagonal().mean() - (torch.logsumexp(table - 1, 1) - math.log(len(x))).exp().mean()


def info_nce(module: Any, x: Tensor, y: Tensor) -> Tensor:
    table = pairs(module.F_func, x, y)
    return table.diagonal().mean() - (torch.logsumexp(table, 1).mean() - math.log(len(x)))


def l1out(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mask ``[n, n, 1]`` meets the table ``[n, n]`` in n x n x n."""
    mu, logvar = gaussian(module, x)
    n = len(x)
    table = (-(y.unsqueeze(0) - mu.unsqueeze(1)).square() / (2 * logvar.exp()).unsqueeze(1)).sum(2)
    table = table - logvar.sum(1, keepdim=True) / 2
    mask = torch.eye(n, dtype=x.dtype, device=x.device).unsqueeze(-1) * -20
    return (table.diagonal() - (torch.logsumexp(table + mask, 0) - math.log(n - 1))).mean()


def var_ub(module: Any, x: Tensor, y: Tensor) -> Tensor:
    mu, logvar = gaussian(module, x)
    return (mu.square() + logvar.exp() - 1 - logvar).mean() / 2


RESTATED = {
    "CLUB": club, "CLUBSample": club_sample, "CLUBMean": club_mean, "CLUBForCategorical": club_for_categorical,
    "MINE": mine, "NWJ": nwj, "InfoNCE": info_nce, "L1OutUB": l1out, "VarUB": var_ub,
}  # fmt: skip
