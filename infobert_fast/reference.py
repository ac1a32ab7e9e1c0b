"""The specification: every function written literally, in whatever dtype it is given; in float64 it is the oracle.

Nothing here is fast and nothing here is clever: pairs are concatenated, sentences are looped over, sorts are Python's.
The fast implementations of :mod:`infobert_fast.functional` are tested against these, values and gradients. Formulas and
symbols follow InfoBERT (Wang et al., ICLR 2021, arXiv 2010.02329) and CLUB (Cheng et al., ICML 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "anchor_indices",
    "club",
    "club_sampled",
    "counter_uniform",
    "donsker_varadhan",
    "freelb_init",
    "freelb_step",
    "gaussian_club",
    "gaussian_club_sampled",
    "gaussian_log_likelihood",
    "info_nce",
    "leave_one_out",
    "nwj",
    "pairwise_mlp_logsumexp",
    "philox4x32",
    "select_anchors",
    "separable_info_nce",
    "smile",
    "variational_upper_bound",
]


def _critic(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``F(x, y) = softplus(w2 . relu(W1 [x; y] + b1) + b2)`` over the last dimension."""
    hidden = torch.relu(F.linear(torch.cat([x, y], dim=-1), w1, b1))
    scores = F.linear(hidden, w2.reshape(1, -1), b2.reshape(1)).squeeze(-1)
    return F.softplus(scores, threshold=50.0)  # the default, 20, costs 2e-9: too much for an oracle


def info_nce(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """``mean_chunks [ mean_i F(x_i, y_i) - mean_i (logsumexp_j F(x_j, y_i) - log n) ]``, every pair concatenated."""
    x = local if local_index is None else local[local_index]
    y = global_ if pair_index is None else global_[pair_index]
    bounds = []
    for x_chunk, y_chunk in zip(x.split(chunk_size or len(x)), y.split(chunk_size or len(y)), strict=True):
        n = len(x_chunk)
        positive = _critic(x_chunk, y_chunk, w1, b1, w2, b2)
        table = _critic(
            x_chunk.unsqueeze(0).expand(n, n, -1), y_chunk.unsqueeze(1).expand(n, n, -1), w1, b1, w2, b2
        )  # table[i, j] = F(x_j, y_i)
        bounds.append(positive.mean() - (torch.logsumexp(table, dim=1) - math.log(n)).mean())
    return torch.stack(bounds).mean()


def _pairings(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
) -> Tensor:
    """``T[i, j] = w2 . relu(W1 [x_j; y_i] + b1) + b2`` of P x P pairings, every one concatenated."""
    x = local if local_index is None else local[local_index]
    y = global_ if pair_index is None else global_[pair_index]
    n = len(x)
    table = torch.cat([x.unsqueeze(0).expand(n, n, -1), y.unsqueeze(1).expand(n, n, -1)], dim=-1)
    return torch.relu(F.linear(table, w1, b1)) @ w2.reshape(-1) + b2


def _negatives(n: int, owner: Tensor | None, include_pairs: bool, device: torch.device) -> Tensor:
    """Which entries of a table [i, j] the sums take: all, or those of pairs j that do not use i's fixed row."""
    owner = torch.arange(n, device=device) if owner is None else owner
    return torch.ones(n, n, dtype=torch.bool, device=device) if include_pairs else owner.unsqueeze(1) != owner


def nwj(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    include_pairs: bool = False,
) -> Tensor:
    """``mean_i T(x_i, y_i) - mean_ij exp(T(x_j, y_i) - 1)``, the second over pairings that are no pairs."""
    table = _pairings(local, global_, w1, b1, w2, b2, local_index, pair_index)
    others = table[_negatives(len(table), pair_index, include_pairs, table.device)]
    return table.diagonal().mean() - torch.exp(others - 1).mean()


def donsker_varadhan(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    include_pairs: bool = False,
) -> Tensor:
    """``mean_i T(x_i, y_i) - log mean_ij exp T(x_j, y_i)``, the second over pairings that are no pairs."""
    table = _pairings(local, global_, w1, b1, w2, b2, local_index, pair_index)
    others = table[_negatives(len(table), pair_index, include_pairs, table.device)]
    return table.diagonal().mean() - (torch.logsumexp(others, 0) - math.log(len(others)))


def smile(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    clip: float,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    include_pairs: bool = False,
) -> Tensor:
    """``mean_i T(x_i, y_i) - log mean_ij exp clip(T(x_j, y_i))``, the second over pairings that are no pairs."""
    table = _pairings(local, global_, w1, b1, w2, b2, local_index, pair_index)
    others = table[_negatives(len(table), pair_index, include_pairs, table.device)].clamp(-clip, clip)
    return table.diagonal().mean() - (torch.logsumexp(others, 0) - math.log(len(others)))


def pairwise_mlp_logsumexp(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """``lse_i = logsumexp_j (w2 . relu(a_j + b_i) + b2)``, over all pairs or within each pair's chunk."""

    def lse(a_rows: Tensor, b_rows: Tensor) -> Tensor:
        scores = torch.relu(a_rows.unsqueeze(0) + b_rows.unsqueeze(1)) @ w2.reshape(-1) + b2
        return torch.logsumexp(scores, dim=1)

    a_pairs = a if local_index is None else a[local_index]
    if chunk_size is None:
        return lse(a_pairs, b)
    b_pairs = b if pair_index is None else b[pair_index]
    return torch.cat([lse(p, q) for p, q in zip(a_pairs.split(chunk_size), b_pairs.split(chunk_size), strict=True)])


def separable_info_nce(
    local: Tensor,
    global_: Tensor,
    *,
    critic: str = "dot",
    weight: Tensor | None = None,
    scale: float | Tensor = 1.0,
    over: str = "global_",
    symmetric: bool = False,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """``mean_i [ F(x_i, y_i) - (logsumexp_j F(x_i, y_j) - log n_i) ]``, N x N scores; j of i's label left out but i.

    ``over="local"`` has ``F(x_j, y_i)``.
    """
    x = local if local_index is None else local[local_index]
    y = global_ if pair_index is None else global_[pair_index]
    if critic == "cosine":
        x, y = (t / t.norm(dim=1, keepdim=True).where((t != 0).any(1, keepdim=True), math.inf) for t in (x, y))
    elif critic == "bilinear":
        assert weight is not None
        x = x @ weight
    table = scale * (y @ x.t())  # table[i, j] = F(x_j, y_i)
    left_out = torch.zeros_like(table, dtype=torch.bool)
    if labels is not None:
        left_out = (labels.unsqueeze(1) == labels) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)

    def bound(table: Tensor) -> Tensor:
        lse = torch.logsumexp(table.masked_fill(left_out, -math.inf), dim=1)
        return (table.diagonal() - (lse - (~left_out).sum(1).to(table.dtype).log())).mean()

    if symmetric:
        return (bound(table) + bound(table.t())) / 2
    return bound(table if over == "local" else table.t())


def club(y: Tensor, mask: Tensor | None = None) -> Tensor:
    """``mean_ij 1/2 ||y_i - y_j||^2`` over all ordered pairs of (unmasked) rows: every difference is formed."""
    rows = y.reshape(-1, y.shape[-1])
    if mask is not None:
        rows = rows[mask.reshape(-1).bool()]
    return (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(-1).mean() / 2


def club_sampled(y: Tensor, index: Tensor, mask: Tensor | None = None) -> Tensor:
    """``mean_m 1/2 ||y_m - y_index[m]||^2`` over (unmasked) rows m."""
    rows = y.reshape(-1, y.shape[-1])
    partners = rows[index.reshape(-1)]
    if mask is not None:
        keep = mask.reshape(-1).bool()
        rows, partners = rows[keep], partners[keep]
    return (rows - partners).square().sum(-1).mean() / 2


def gaussian_log_likelihood(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """``mean_n sum_d [ -(mu - y)^2 / e^logvar - logvar ]``."""
    return (-((mu - y) ** 2) / logvar.exp() - logvar).sum(-1).mean()


def gaussian_club_sampled(mu: Tensor, logvar: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """``mean_n sum_d [ -(mu_n - y_n)^2 + (mu_n - y_index[n])^2 ] / (2 e^logvar_n)``."""
    return ((-((mu - y) ** 2) + (mu - y[index]) ** 2) / (2 * logvar.exp())).sum(-1).mean()


def gaussian_club(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """As the sampled form, the second square averaged over every y: ``[N, N, d]`` differences are formed."""
    negative = ((y.unsqueeze(0) - mu.unsqueeze(1)) ** 2).mean(dim=1)
    return ((-((mu - y) ** 2) + negative) / (2 * logvar.exp())).sum(-1).mean()


def leave_one_out(mu: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """``mean_i [ log q_i(y_i) - log 1/(N-1) sum_{j != i} q_j(y_i) ]``, ``q_j = N(mu_j, e^logvar_j)``."""
    n = len(y)
    log_q = torch.distributions.Normal(mu.unsqueeze(0), torch.exp(logvar / 2).unsqueeze(0)).log_prob(y.unsqueeze(1))
    table = log_q.sum(-1)  # table[i, j] = log q_j(y_i)
    others = table.masked_fill(torch.eye(n, dtype=torch.bool, device=y.device), -math.inf)
    return (table.diagonal() - (torch.logsumexp(others, dim=1) - math.log(n - 1))).mean()


def variational_upper_bound(mu: Tensor, logvar: Tensor) -> Tensor:
    """``mean_n KL( N(mu_n, e^logvar_n) || N(0, 1) )``, summed over dimensions."""
    q = torch.distributions.Normal(mu, torch.exp(logvar / 2))
    return torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()


def _ranked_positions(grad: Tensor, mask: Tensor, cl: float, ch: float) -> list[int]:
    """One sentence's anchors by ascending gradient norm, ties by position, a NaN norm as infinity."""
    positions = [t for t, keep in enumerate(mask.bool().tolist()) if keep]
    norms = [float(grad[t].norm()) for t in positions]
    norms = [math.inf if math.isnan(norm) else norm for norm in norms]
    ranked = [t for _, t in sorted(zip(norms, positions, strict=True))]
    n = len(positions)
    return ranked[math.ceil(n * cl) : math.ceil(n * ch)]


def select_anchors(grad: Tensor, attention_mask: Tensor, cl: float = 0.5, ch: float = 0.9) -> Tensor:
    """Tokens whose gradient-norm rank r in their sentence of n tokens has ``ceil(n cl) <= r < ceil(n ch)``."""
    anchors = torch.zeros_like(attention_mask, dtype=torch.bool)
    for i in range(len(grad)):
        anchors[i, _ranked_positions(grad[i], attention_mask[i], cl, ch)] = True
    return anchors


def anchor_indices(grad: Tensor, attention_mask: Tensor, cl: float = 0.5, ch: float = 0.9) -> Tensor:
    """The same anchors as flat indices ``i * length + t``: sentence by sentence, within one by ascending norm."""
    batch, length = attention_mask.shape
    flat = [i * length + t for i in range(batch) for t in _ranked_positions(grad[i], attention_mask[i], cl, ch)]
    return torch.tensor(flat, dtype=torch.int64, device=grad.device)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words from a counter of four and a key of two."""
    c, k = list(counter), list(key)
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [product1 >> 32 ^ c[1] ^ k[0], product1 % 2**32, product0 >> 32 ^ c[3] ^ k[1], product0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def counter_uniform(seed: int, sentence_id: int, token: int, channel: int) -> float:
    """``(2 k + 1) 2^-23 - 1`` in (-1, 1), with k the upper 23 bits of word ``channel % 4`` of the Philox counter
    ``(channel // 4, token, sentence id, sentence id >> 32)`` under the seed's two words.
    """
    counter = (channel // 4, token, sentence_id % 2**32, (sentence_id >> 32) % 2**32)
    word = philox4x32(counter, (seed % 2**32, (seed >> 32) % 2**32))[channel % 4]
    return (2 * (word >> 9) + 1) * 2.0**-23 - 1


def freelb_init(
    embeddings: Tensor,
    attention_mask: Tensor,
    adv_init_mag: float,
    norm_type: str = "l2",
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    sentence_ids: Tensor | None = None,
) -> Tensor:
    """l2: ``U(-1, 1) * mask * mag / sqrt(len_i * d)`` per sentence i; linf: ``U(-mag, mag) * mask``.

    U is drawn from ``generator`` or, with ``seed``, is ``counter_uniform(seed, id_i, t, h)`` at the sentence's t-th
    token and channel h, ``id_i`` being i where ``sentence_ids`` is None.
    """
    if seed is None:
        delta = (
            torch.rand(embeddings.shape, dtype=embeddings.dtype, device=embeddings.device, generator=generator) * 2 - 1
        )
    else:
        delta = torch.zeros_like(embeddings, requires_grad=False)
        for i in range(len(delta)):
            sentence_id = i if sentence_ids is None else int(sentence_ids[i])
            for token, position in enumerate(attention_mask[i].bool().nonzero().flatten().tolist()):
                draws = [counter_uniform(seed, sentence_id, token, h) for h in range(embeddings.shape[-1])]
                delta[i, position] = torch.tensor(draws, dtype=delta.dtype)
    for i in range(len(delta)):
        scale = adv_init_mag
        if norm_type == "l2":
            # rounded to delta's dtype at every step, in NumPy, whose square root is correctly rounded
            number = np.float64 if delta.dtype == torch.float64 else np.float32
            entries = max(1, int(attention_mask[i].bool().sum()) * embeddings.shape[-1])
            scale = float(number(adv_init_mag) / np.sqrt(number(entries)))
        delta[i] = delta[i] * attention_mask[i].unsqueeze(-1).to(delta.dtype) * scale
    return delta


def freelb_step(
    delta: Tensor,
    grad: Tensor,
    attention_mask: Tensor,
    adv_lr: float,
    adv_max_norm: float = 0.0,
    norm_type: str = "l2",
) -> Tensor:
    """One ascent per sentence: normalise g, ``delta + adv_lr * g``, project to ``adv_max_norm`` (if > 0), re-mask."""
    out = torch.empty_like(delta)
    for i in range(len(delta)):
        mask = attention_mask[i].bool().unsqueeze(-1)
        g = torch.where(mask, grad[i], torch.zeros_like(grad[i]))
        size = g.norm() if norm_type == "l2" else g.abs().max()
        moved = torch.where(mask, delta[i] + adv_lr * g / size.clamp(min=1e-8), torch.zeros_like(delta[i]))
        if adv_max_norm > 0 and norm_type == "l2":
            norm = moved.norm()
            moved = moved * adv_max_norm / norm if norm > adv_max_norm else moved
        elif adv_max_norm > 0:
            moved = moved.clamp(-adv_max_norm, adv_max_norm)
        out[i] = moved
    return out
