"""The loss of info-nce-pytorch, in memory that is linear in the batch: same names, arguments, values and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infobert_fast import checks
from infobert_fast.functional import dot_logsumexp, dot_scores

__all__ = ["InfoNCE", "info_nce"]

REDUCTIONS = ("none", "mean", "sum")
NEGATIVE_MODES = ("unpaired", "paired")


class InfoNCE(nn.Module):
    """Cross-entropy of picking each query's positive key by cosine similarity; see :func:`info_nce`.

    Example:
        >>> loss = InfoNCE(temperature=0.05)(query, positive_key)  # the other queries' positives are the negatives
    """

    def __init__(self, temperature: float = 0.1, reduction: str = "mean", negative_mode: str = "unpaired") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        return info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            reduction=self.reduction,
            negative_mode=self.negative_mode,
        )


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
) -> Tensor:
    """``-log ( e^{s(q_i, p_i)} / sum of e^s over q_i's keys )`` with ``s(q, k) = cos(q, k) / temperature``, in nats.

    The keys of a query are all positives of the batch or, where ``negative_keys`` are given, its own positive and they.

    Args:
        query, positive_key: ``[N, d]``.
        negative_keys: ``[M, d]`` for every query ("unpaired"), or ``[N, M, d]``, M for each ("paired").
        reduction: "mean" over queries, "sum", or "none" for ``[N]``.

    Raises:
        TypeError, ValueError: for what does not fit, by name.
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.choice("negative_mode", negative_mode, NEGATIVE_MODES)
    checks.number("temperature", temperature, low=1e-6, advice="scores are divided by it")
    for name, rows in (("query", query), ("positive_key", positive_key)):
        checks.matrix(name, rows)
    scale, like = 1 / temperature, ("query", query)
    if positive_key.shape != query.shape:
        raise ValueError(
            f"`positive_key` has shape {list(positive_key.shape)} and `query` {list(query.shape)}; give one for each"
        )
    if negative_keys is None:
        scores = dot_scores(query, positive_key, critic="cosine", scale=scale)
        return _reduced(scores.lse - scores.positive, reduction)
    if negative_mode == "unpaired":
        checks.matrix("negative_keys", negative_keys, width=query.shape[1], like=like)
        others = dot_logsumexp(query, negative_keys, critic="cosine", scale=scale)
    else:
        if negative_keys.dim() != 3 or negative_keys.shape[::2] != query.shape:
            raise ValueError(
                f"`negative_keys` has shape {list(negative_keys.shape)}; with negative_mode='paired' it must be "
                f"[{query.shape[0]}, M, {query.shape[1]}], M keys for each query"
            )
        cosines = torch.einsum("nd,nmd->nm", F.normalize(query, dim=-1), F.normalize(negative_keys, dim=-1))
        others = torch.logsumexp(cosines.to(torch.promote_types(cosines.dtype, torch.float32)) * scale, 1)
    positive = F.cosine_similarity(query, positive_key).to(others.dtype) * scale
    return _reduced(torch.logaddexp(positive, others) - positive, reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
