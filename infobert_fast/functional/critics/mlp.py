"""The concatenating MLP critic, factorised: the scores of the pairs, and a log-sum-exp for all the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional import streaming
from infobert_fast.functional.bounds import Scores, gather
from infobert_fast.functional.critics.pairs import check_pairs
from infobert_fast.functional.implementation import IMPLEMENTATIONS, Implementation, choose
from infobert_fast.functional.ranks import gather_rows
from infobert_fast.kernels.pairs import Pairs, Terms

__all__ = ["PRECISIONS", "Mlp", "Precision", "Projected", "check_mlp", "mlp_scores", "pairwise_mlp_logsumexp"]

Precision = Literal["exact", "fast"]
PRECISIONS: tuple[Precision, ...] = ("exact", "fast")


def mlp_scores(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    include_pairs: bool = True,
    clip: float | None = None,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Scores:
    """Scores of ``T(x, y) = w2 . relu(W1 [x; y] + b1) + b2`` for any of :mod:`infobert_fast.functional.bounds`.

    The sums run over local rows, for each global one.

    Args:
        include_pairs: whether the sum of a global row takes the scores of the pairs that it is part of.
        clip: scores enter the sums as the nearest number in ``[-clip, clip]``; those of the pairs stay as they are.
        others: as in :func:`infobert_fast.functional.info_nce`; ``"reference"`` is not among the implementations.
    """
    critic = check_mlp(
        (local, global_, w1, b1, w2, b2),
        local_index,
        pair_index,
        include_pairs=include_pairs,
        clip=clip,
        implementation=implementation,
        precision=precision,
        validate=validate,
    )
    return critic.project().scores(implementation, precision)


class Mlp(NamedTuple):
    """Checked operands of one call, in one dtype, and the pairs they make."""

    local: Tensor  # [M, x_dim]
    global_: Tensor  # [B, y_dim]
    w1: Tensor  # [H, x_dim + y_dim]
    b1: Tensor  # [H]
    w2: Tensor  # [H]
    b2: Tensor  # [1]
    pairs: Pairs

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self[:6]

    def project(self) -> Projected:
        """``W1 [x; y] = Wx x + Wy y``: two GEMMs instead of an N x N x 2d concatenation; in float32 at least."""
        local, global_, w1, b1, w2, b2, pairs = self
        with torch.autocast(local.device.type, enabled=False):
            # Gather before the projection unless rows repeat: P rows of x_dim are then fewer than M.
            wx, wy = w1.split((local.shape[1], global_.shape[1]), dim=1)
            if pairs.local_index is not None and pairs.count <= local.shape[0]:
                local, pairs = gather(local, pairs.local_index), pairs._replace(local_index=None)
            # In float32 at least: a rounding of a or b is common to all pairs of its row and does not average out as
            # one of each pair's sum would; and the gradients of a row's many uses must not be summed in half precision.
            wide = torch.promote_types(local.dtype, torch.float32)
            local, global_, wx, wy, b1, w2, b2 = (t.to(wide) for t in (local, global_, wx, wy, b1, w2, b2))
            return Projected(F.linear(local, wx), F.linear(global_, wy, b1), w2, b2, pairs)


class Projected(NamedTuple):
    """What the scores ``u_ij = w2 . relu(a_j + b_i) + b2`` of a call are made of."""

    a: Tensor  # [M, H]
    b: Tensor  # [B, H]
    w2: Tensor  # [H]
    b2: Tensor  # [1]
    pairs: Pairs

    def scores(self, implementation: Implementation, precision: Precision, *, softplus: bool = False) -> Scores:
        """Of ``u``, or of ``softplus(u)``. With ``of_ranks`` j runs over the pairs of all ranks: the projected rows
        travel, ``[P, H]``.
        """
        a, b, w2, b2, pairs = self
        count, of_each, row_index = pairs.count, pairs, pairs.pair_index if pairs.chunk_size is None else None
        with torch.autocast(a.device.type, enabled=False):
            a_pairs, b_pairs = gather(a, pairs.local_index), gather(b, pairs.pair_index)
            if pairs.of_ranks is not None:
                count = sum(pairs.of_ranks)
                a, of_each = gather_rows(a_pairs, pairs.of_ranks), Pairs(count)
            lse = _logsumexp(a, b, w2, b2, of_each, implementation, precision)
            positive = torch.relu(a_pairs + b_pairs) @ w2 + b2
        number: int | Tensor = pairs.terms.number(count)
        if pairs.chunk_size is not None:
            number = torch.full_like(lse, min(pairs.chunk_size, count))
            if ragged := count % pairs.chunk_size:
                number[-ragged:] = ragged
        if softplus:
            # Softplus turns linear above its threshold; at the default, 20, float64 would lose seven digits.
            positive = F.softplus(positive, threshold=50.0)
            # exp(softplus(u)) = 1 + e^u, so logsumexp_j softplus(u_ij) = log(n + sum_j e^u_ij): no softplus per pair.
            log_n = torch.full_like(lse, math.log(number)) if isinstance(number, int) else number.log()
            lse = torch.logaddexp(lse, log_n)
        return Scores(positive, lse, pairs, row_index, number)


def check_mlp(
    operands: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    local_index: Tensor | None,
    pair_index: Tensor | None,
    *,
    chunk_size: int | None = None,
    pairs_of_ranks: Sequence[int] | None = None,
    include_pairs: bool = True,
    clip: float | None = None,
    implementation: Implementation,
    precision: Precision,
    validate: bool | None,
) -> Mlp:
    """Refuse, by name, what does not fit together: the one place where a call is looked at."""
    local, global_, w1, b1, w2, b2 = operands
    checks.choice("implementation", implementation, IMPLEMENTATIONS)
    checks.choice("precision", precision, PRECISIONS)
    local, global_, w1, b1, w2, b2 = _resolve_autocast(local, global_, w1, b1, w2.reshape(-1), b2.reshape(-1))
    checks.matrix("local", local)
    checks.matrix("global_", global_, like=("local", local))
    checks.matrix("w1", w1, width=local.shape[1] + global_.shape[1], like=("local", local))
    for name, value, size in (("b1", b1, w1.shape[0]), ("w2", w2, w1.shape[0]), ("b2", b2, 1)):
        checks.vector(name, value, size, like=("local", local))
    pairs = check_pairs(
        ("local", local),
        ("global_", global_),
        local_index,
        pair_index,
        chunk_size=chunk_size,
        pairs_of_ranks=pairs_of_ranks,
        include_pairs=include_pairs,
        clip=clip,
        validate=validate,
    )
    return Mlp(local, global_, w1, b1, w2, b2, pairs)


def _resolve_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast bring all to float32, which is what is computed in anyway; elsewhere mixed dtypes are refused."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.float() if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def pairwise_mlp_logsumexp(
    a: Tensor,
    b: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
    precision: Precision = "exact",
    validate: bool | None = None,
) -> Tensor:
    """``lse_i = logsumexp_j ( w2 . relu(a_j + b_i) + b2 )``: what every bound with this critic rests on.

    Args:
        a: ``[M, H]``, the projected local rows ``Wx x``; j runs over ``local_index`` (identity where None).
        b: ``[B, H]``, the projected global rows ``Wy y + b1``.
        w2, b2: ``[H]`` or ``[1, H]``, and ``[1]``.
        chunk_size: None gives one value for each **row of b** against all pairs: ``[B]``. Otherwise one value for each
            **pair** against its own chunk: ``[P]``, pair p being ``(a[local_index[p]], b[pair_index[p]])``.
        local_index, pair_index, implementation, precision, validate: as in :func:`infobert_fast.functional.info_nce`.

    Returns:
        ``[B]`` or ``[P]`` in nats, float32 for half-precision inputs; differentiable once in a, b, w2 and b2.

    Raises:
        As :func:`infobert_fast.functional.info_nce`.
    """
    w2, b2 = w2.reshape(-1), b2.reshape(-1)
    checks.choice("precision", precision, PRECISIONS)
    checks.matrix("a", a)
    checks.matrix("b", b, width=a.shape[1], like=("a", a))
    checks.vector("w2", w2, a.shape[1], like=("a", a))
    checks.vector("b2", b2, 1, like=("a", a))
    pairs = check_pairs(
        ("a", a), ("b", b), local_index, pair_index, chunk_size=chunk_size, paired=chunk_size is not None,
        validate=validate,
    )  # fmt: skip
    if choose(implementation, a, kernel=True, compiled=True) == "reference":
        return reference.pairwise_mlp_logsumexp(
            a, b, w2, b2, local_index=local_index, pair_index=pair_index, chunk_size=chunk_size
        )
    with torch.autocast(a.device.type, enabled=False):
        return _logsumexp(a, b, w2, b2, pairs, implementation, precision)


def _logsumexp(
    a: Tensor, b: Tensor, w2: Tensor, b2: Tensor, pairs: Pairs, implementation: Implementation, precision: Precision
) -> Tensor:
    chosen = choose(implementation, a, kernel=True, compiled=True)
    if chosen == "triton":
        from infobert_fast.kernels.pairwise_mlp import logsumexp  # Triton is imported here, at the first call

        fused: Tensor = logsumexp(a, b, w2, b2, pairs, precision)
        return fused
    # Inside a graph that is compiled already the loops are part of it.
    compiled = chosen == "compiled" and not torch.compiler.is_compiling()
    a_pairs, chunk_size = gather(a, pairs.local_index), pairs.chunk_size
    if chunk_size is None:
        rows = a_pairs.unsqueeze(0), b.unsqueeze(0)
        return streaming.pairwise_mlp_logsumexp(*rows, w2, b2, terms=pairs.terms, compiled=compiled).squeeze(0)
    b_pairs = gather(b, pairs.pair_index)
    w2, b2 = w2.view_as(w2), b2.view_as(b2)  # both parts' gradients are added before the positives' joins them
    whole = pairs.count - pairs.count % chunk_size
    parts = []
    for start, stop, size in ((0, whole, chunk_size), (whole, pairs.count, pairs.count - whole)):
        if start < stop:
            a_chunks, b_chunks = (rows[start:stop].unflatten(0, (-1, size)) for rows in (a_pairs, b_pairs))
            lse = streaming.pairwise_mlp_logsumexp(a_chunks, b_chunks, w2, b2, terms=Terms(), compiled=compiled)
            parts.append(lse.flatten())
    return torch.cat(parts)
