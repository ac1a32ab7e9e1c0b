"""Critics that are a product of a function of x and one of y: dot, cosine and bilinear."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks
from infobert_fast.functional import dot_blocks
from infobert_fast.functional.bounds import Scores, gather
from infobert_fast.functional.critics.pairs import check_pairs
from infobert_fast.functional.implementation import IMPLEMENTATIONS, Implementation, choose
from infobert_fast.kernels.pairs import Pairs, Terms

__all__ = [
    "SEPARABLE_CRITICS",
    "SIDES",
    "SeparableCritic",
    "Side",
    "check_dot",
    "dot_logsumexp",
    "dot_scores",
    "project",
]

SeparableCritic = Literal["dot", "cosine", "bilinear"]
SEPARABLE_CRITICS: tuple[SeparableCritic, ...] = ("dot", "cosine", "bilinear")
Side = Literal["global_", "local"]
SIDES: tuple[Side, ...] = ("global_", "local")


def dot_scores(
    local: Tensor,
    global_: Tensor,
    *,
    critic: SeparableCritic = "dot",
    weight: Tensor | None = None,
    scale: float | Tensor = 1.0,
    over: Side = "global_",
    symmetric: bool = False,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    labels: Tensor | None = None,
    include_pairs: bool = True,
    clip: float | None = None,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Scores:
    """Scores of a separable critic for any of :mod:`infobert_fast.functional.bounds`.

    Args:
        include_pairs: whether a sum takes the score of its own pair, and of the pairs that share its fixed row, the
            global one where ``symmetric`` (with ``labels``, of those of its label).
        clip: scores enter the sums as the nearest number in ``[-clip, clip]``; those of the pairs stay as they are.
        others: as in :func:`infobert_fast.functional.separable_info_nce`; ``"reference"`` is not among the
            implementations.
    """
    scale, pairs = check_dot(
        local, global_, critic, weight, scale, over, symmetric, local_index, pair_index, labels, include_pairs, clip,
        implementation, validate,
    )  # fmt: skip
    return project(local, global_, critic, weight, scale, over, symmetric, pairs, implementation)


def project(
    local: Tensor,
    global_: Tensor,
    critic: SeparableCritic,
    weight: Tensor | None,
    scale: Tensor,
    over: Side,
    symmetric: bool,
    pairs: Pairs,
    implementation: Implementation,
) -> Scores:
    """The scores of checked operands: rows are projected, rounded to what products are made in, and summed up."""
    x, y, dtype = _prepare(local, global_, critic, weight)
    with torch.autocast(local.device.type, enabled=False):
        # the sums run over the pairs' rows of one side, x, for each fixed row of the other, y
        index, row_index = pairs.local_index, pairs.pair_index
        if over == "global_" and not symmetric:
            x, y, index, row_index = y, x, row_index, index
        x, terms = gather(x, index), pairs.terms
        if symmetric or terms.rows is not None:
            y, row_index, terms = gather(y, row_index), None, terms._replace(rows=terms.columns)
        chosen = choose(implementation, local, kernel=True)
        lse_i, lse_j = _logsumexp(x, y, scale, terms, symmetric, dtype, chosen)
        positive = (x * gather(y, row_index)).sum(1) * scale.to(x.dtype)
    number = pairs.terms.number(pairs.count)
    number = torch.full_like(positive, number) if isinstance(number, int) else number
    return Scores(positive, lse_i, pairs, row_index, number, lse_j if symmetric else None)


def dot_logsumexp(
    rows: Tensor,
    columns: Tensor,
    *,
    critic: SeparableCritic = "dot",
    scale: float | Tensor = 1.0,
    implementation: Implementation = "auto",
) -> Tensor:
    """``logsumexp_j F(rows_i, columns_j)`` of each row, ``[I]``: any number of rows and columns, and no pairs.

    Arguments, result and errors as in :func:`infobert_fast.functional.separable_info_nce`, for dot and cosine.
    """
    scale, _ = check_dot(
        columns, rows, critic, None, scale, "local", False, None, None, None, True, None, implementation, None,
        paired=False,
    )  # fmt: skip
    x, y, dtype = _prepare(columns, rows, critic, None)
    with torch.autocast(rows.device.type, enabled=False):
        return _logsumexp(x, y, scale, Terms(), False, dtype, choose(implementation, rows, kernel=True))[0]


def _prepare(
    local: Tensor, global_: Tensor, critic: SeparableCritic, weight: Tensor | None
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both sides projected, in float32 at least, rounded to what products are made in: autocast's dtype or theirs."""
    device, dtype = local.device.type, local.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(device, enabled=False):
        x, y = local.to(wide), global_.to(wide)
        if critic == "cosine":
            x, y = (_directions(t) for t in (x, y))
        elif critic == "bilinear":
            assert weight is not None
            y = F.linear(y, weight.to(wide))
        return _Rounded.apply(x, dtype), _Rounded.apply(y, dtype), dtype


def _directions(rows: Tensor) -> Tensor:
    """Rows of norm 1; a zero row stays zero and receives no gradient."""
    norm = rows.norm(dim=1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, torch.inf)


class _Rounded(torch.autograd.Function):
    """Values of ``dtype`` held in the tensor's own: a cast and back would round the gradient too, which is smaller by
    1 / N and would vanish in float16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype) if x.dtype != dtype else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _logsumexp(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    terms: Terms,
    symmetric: bool,
    dtype: torch.dtype,
    implementation: Implementation,
) -> tuple[Tensor, Tensor]:
    """Of ``scale <y_i, x_j>`` over j for each i, and over i for each j where ``symmetric``."""
    if implementation != "triton":
        return dot_blocks.logsumexp(x, y, scale, terms, symmetric, dtype)
    from infobert_fast.kernels import separable  # Triton is imported here, at the first call

    lse: tuple[Tensor, Tensor] = separable.logsumexp(x, y, scale, terms, symmetric, dtype)
    return lse


def check_dot(
    local: Tensor,
    global_: Tensor,
    critic: str,
    weight: Tensor | None,
    scale: float | Tensor,
    over: str,
    symmetric: bool,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    labels: Tensor | None,
    include_pairs: bool,
    clip: float | None,
    implementation: str,
    validate: bool | None,
    paired: bool = True,
) -> tuple[Tensor, Pairs]:
    """Refuse, by name, what does not fit together; the scale as a tensor, and the pairs."""
    checks.choice("critic", critic, SEPARABLE_CRITICS)
    checks.choice("over", over, SIDES)
    checks.choice("implementation", implementation, IMPLEMENTATIONS)
    checks.matrix("local", local)
    checks.matrix("global_", global_)
    resolved = torch.amp.is_autocast_available(local.device.type) and torch.is_autocast_enabled(local.device.type)
    checks.agree("global_", global_, "local", local, dtype=not resolved)
    if critic == "bilinear":
        if weight is None or weight.shape != (local.shape[1], global_.shape[1]):
            was = "None" if weight is None else f"of shape {list(weight.shape)}"
            raise ValueError(
                f"`weight` was {was}; the bilinear critic needs [{local.shape[1]}, {global_.shape[1]}], a row for each "
                f"column of `local`"
            )
        checks.agree("weight", weight, "local", local, dtype=not resolved)
    else:
        if weight is not None:
            raise ValueError(f"`weight` was given; the {critic} critic has none: use critic='bilinear'")
        if local.shape[1] != global_.shape[1]:
            raise ValueError(
                f"`global_` is {global_.shape[1]} wide and `local` {local.shape[1]}; the {critic} critic needs equal "
                f"widths: project one, or use critic='bilinear'"
            )
    wide = torch.promote_types(local.dtype, torch.float32)
    if not isinstance(scale, Tensor):
        checks.number("scale", scale, low=0.0, advice="it is the inverse of the temperature")
        scale = torch.full((), scale, dtype=wide, device=local.device)
    elif scale.numel() != 1 or not scale.is_floating_point():
        raise ValueError(f"`scale` was {scale.dtype} of shape {list(scale.shape)}; it must be a number or one float")
    checks.agree("scale", scale, "local", local, dtype=False)
    pairs = check_pairs(
        ("local", local), ("global_", global_), local_index, pair_index, include_pairs=include_pairs, clip=clip,
        fixed="local" if over == "global_" and not symmetric else "global_", labels=labels, paired=paired,
        validate=validate,
    )  # fmt: skip
    return scale.reshape(()), pairs
