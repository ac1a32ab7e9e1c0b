"""The concatenating MLP critic, factorised: the scores of the pairs and what stands for all the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks
from infobert_fast.functional.implementation import IMPLEMENTATIONS, Implementation
from infobert_fast.functional.pairwise import PRECISIONS, Precision, count_pairs, gather, pairwise_mlp_logsumexp
from infobert_fast.functional.ranks import gather_rows

__all__ = ["Critic", "Projected", "Scores", "check_critic"]


class Critic(NamedTuple):
    """Checked operands of one call, in one dtype, and the pairs they make."""

    local: Tensor  # [M, x_dim]
    global_: Tensor  # [B, y_dim]
    w1: Tensor  # [H, x_dim + y_dim]
    b1: Tensor  # [H]
    w2: Tensor  # [H]
    b2: Tensor  # [1]
    local_index: Tensor | None
    pair_index: Tensor | None
    pairs: int

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self[:6]

    def project(self) -> Projected:
        """``W1 [x; y] = Wx x + Wy y``: two GEMMs instead of an N x N x 2d concatenation; in float32 at least."""
        local, global_, w1, b1, w2, b2, local_index, pair_index, pairs = self
        with torch.autocast(local.device.type, enabled=False):
            # Gather before the projection unless rows repeat: P rows of x_dim are then fewer than M.
            wx, wy = w1.split((local.shape[1], global_.shape[1]), dim=1)
            if local_index is not None and pairs <= local.shape[0]:
                local, local_index = gather(local, local_index), None
            # In float32 at least: a rounding of a or b is common to all pairs of its row and does not average out as
            # one of each pair's sum would; and the gradients of a row's many uses must not be summed in half precision.
            wide = torch.promote_types(local.dtype, torch.float32)
            local, global_, wx, wy, b1, w2, b2 = (t.to(wide) for t in (local, global_, wx, wy, b1, w2, b2))
            return Projected(F.linear(local, wx), F.linear(global_, wy, b1), w2, b2, local_index, pair_index)


class Projected(NamedTuple):
    """What the scores ``u_ij = w2 . relu(a_j + b_i) + b2`` of a call are made of."""

    a: Tensor  # [M, H]
    b: Tensor  # [B, H]
    w2: Tensor  # [H]
    b2: Tensor  # [1]
    local_index: Tensor | None
    pair_index: Tensor | None

    def scores(
        self,
        chunk_size: int | None,
        implementation: Implementation,
        precision: Precision,
        pairs_of_ranks: Sequence[int] | None = None,
    ) -> Scores:
        """With ``pairs_of_ranks``, j runs over the pairs of all ranks: the projected rows travel, ``[P, H]``."""
        a, b, w2, b2, local_index, pair_index = self
        with torch.autocast(a.device.type, enabled=False):
            a_pairs, b_pairs = gather(a, local_index), gather(b, pair_index)
            if pairs_of_ranks is not None:
                a, local_index, pair_index = gather_rows(a_pairs, pairs_of_ranks), None, None
            lse = pairwise_mlp_logsumexp(
                a,
                b,
                w2,
                b2,
                local_index=local_index,
                pair_index=pair_index,
                chunk_size=chunk_size,
                implementation=implementation,
                precision=precision,
                validate=False,
            )
            positive = torch.relu(a_pairs + b_pairs) @ w2 + b2
        return Scores(positive, lse)


class Scores(NamedTuple):
    """Of a call: each pair's score, and ``logsumexp_j u_ij`` of each row of global_ (of each pair where chunked)."""

    positive: Tensor  # [P]
    lse: Tensor  # [B] or [P]


def check_critic(
    local: Tensor,
    global_: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    *,
    chunk_size: int | None,
    implementation: Implementation,
    precision: Precision,
    validate: bool | None,
    may_be_empty: bool = False,
) -> Critic:
    """Refuse, by name, what does not fit together."""
    checks.choice("implementation", implementation, IMPLEMENTATIONS)
    checks.choice("precision", precision, PRECISIONS)
    local, global_, w1, b1, w2, b2 = _resolve_autocast(local, global_, w1, b1, w2.reshape(-1), b2.reshape(-1))
    checks.matrix("local", local)
    checks.matrix("global_", global_, like=("local", local))
    checks.matrix("w1", w1, width=local.shape[1] + global_.shape[1], like=("local", local))
    for name, value, size in (("b1", b1, w1.shape[0]), ("w2", w2, w1.shape[0]), ("b2", b2, 1)):
        checks.vector(name, value, size, like=("local", local))
    pairs, others = count_pairs(
        local, global_, local_index, pair_index, chunk_size, ("local", "global_"), validate, may_be_empty
    )
    if pairs != others:
        raise ValueError(
            f"`{'local' if local_index is None else 'local_index'}` gives {pairs} pairs and "
            f"`{'global_' if pair_index is None else 'pair_index'}` {others}; the counts must agree: pass `pair_index` "
            f"to say which row of `global_` each pair uses"
        )
    return Critic(local, global_, w1, b1, w2, b2, local_index, pair_index, pairs)


def _resolve_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast bring all to float32, which is what is computed in anyway; elsewhere mixed dtypes are refused."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.float() if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)
