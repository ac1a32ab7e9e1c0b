"""InfoNCE with a separable critic, dot product, cosine or bilinear: CLIP's and SimCSE's objective in linear memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional import dot_blocks
from infobert_fast.functional.implementation import IMPLEMENTATIONS, Implementation, choose
from infobert_fast.functional.pairwise import count_pairs, gather
from infobert_fast.kernels.once import first_order

__all__ = ["SEPARABLE_CRITICS", "SeparableCritic", "separable_info_nce"]

SeparableCritic = Literal["dot", "cosine", "bilinear"]
SEPARABLE_CRITICS: tuple[SeparableCritic, ...] = ("dot", "cosine", "bilinear")


def separable_info_nce(
    local: Tensor,
    global_: Tensor,
    *,
    critic: SeparableCritic = "dot",
    weight: Tensor | None = None,
    scale: float | Tensor = 1.0,
    symmetric: bool = False,
    local_index: Tensor | None = None,
    pair_index: Tensor | None = None,
    labels: Tensor | None = None,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """InfoNCE lower bound on I(X; Y) in nats under a critic that is a product of a function of x and one of y.

    ``F(x, y) = scale <x, y>`` ("dot"), ``scale <x, y> / (|x| |y|)`` ("cosine") or ``scale x^T W y`` ("bilinear").
    The cosine of a zero row is 0, and its gradient too: it has no direction.

    ``I = mean_i F(x_i, y_i) - mean_i ( logsumexp_j F(x_j, y_i) - log N )`` over the N pairs, at most log N; with
    ``symmetric`` the mean of it and of the same with x and y exchanged. ``log N - I`` is the cross-entropy that CLIP
    (cosine, symmetric) and SimCSE (cosine) minimise, N x N scores never being held: memory is O(N d) plus a block.

    Args:
        local: ``[M, x_dim]``.
        global_: ``[B, y_dim]``; for dot and cosine ``y_dim = x_dim``.
        weight: ``[x_dim, y_dim]``, W of the bilinear critic.
        scale: the inverse temperature: a number, or a tensor of one element, which then receives a gradient.
        symmetric: average the bounds of both directions.
        local_index, pair_index: int64 ``[P]``: pair p is ``(local[local_index[p]], global_[pair_index[p]])``, the
            identity where None. Rows of ``global_`` that several pairs share are scored once, unless the call is
            symmetric or labelled.
        labels: int64 ``[P]``; pairs of equal label are no negatives of each other (duplicates in a batch, sentences of
            one class). Pair i then has n_i terms instead of N, and log n_i in place of log N.
        implementation: see :mod:`infobert_fast.functional`.
        validate: read and check index values too: on a CPU unless False, on a GPU only if True.

    Returns:
        A scalar, differentiable once in local, global_, weight and scale; float32 for half-precision inputs. Products
        are of the inputs' dtype (of autocast's, where that is on) accumulated in float32. NaN in gives NaN out.

    Raises:
        TypeError, ValueError, IndexError: for widths, counts, dtypes, devices or indices that do not fit, by name.

    Source: van den Oord et al. 2018; Radford et al. 2021 (CLIP); Gao et al. 2021 (SimCSE).
    """
    scale, pairs = _check(
        local, global_, critic, weight, scale, local_index, pair_index, labels, implementation, validate
    )
    if implementation == "reference":
        return reference.separable_info_nce(
            local,
            global_,
            critic=critic,
            weight=weight,
            scale=scale,
            symmetric=symmetric,
            local_index=local_index,
            pair_index=pair_index,
            labels=labels,
        )
    device = local.device.type
    dtype = local.dtype
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
        x, y = gather(_Rounded.apply(x, dtype), local_index), _Rounded.apply(y, dtype)
        if symmetric or labels is not None:
            y, pair_index = gather(y, pair_index), None
        lse_i, lse_j = _logsumexp(x, y, scale, labels, symmetric, dtype, choose(implementation, local, kernel=True))
        positive = (x * gather(y, pair_index)).sum(1) * scale.to(wide)
        # A lone term's logarithm is its positive but for its rounding: a factor 0 keeps the 0 exact and a NaN visible.
        n = _terms(labels, pairs, positive)
        bound = (positive - gather(lse_i.unsqueeze(1), pair_index).squeeze(1) + n.log()) * (n > 1)
        if symmetric:
            bound = (bound + (positive - lse_j + n.log()) * (n > 1)) / 2
        return bound.mean()


def _directions(rows: Tensor) -> Tensor:
    """Rows of norm 1; a zero row stays zero and receives no gradient."""
    norm = rows.norm(dim=1, keepdim=True)
    return rows / norm.masked_fill(norm == 0, torch.inf)


def _terms(labels: Tensor | None, pairs: int, like: Tensor) -> Tensor:
    """How many terms each pair's sum has: itself, and the pairs of other labels; without a comparison of all pairs."""
    if labels is None:
        return torch.full_like(like, pairs)
    ordered = labels.sort().values
    equal = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    return (pairs + 1 - equal).to(like.dtype)


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


class _SeparableLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        labels: Tensor | None,
        symmetric: bool,
        dtype: torch.dtype,
        implementation: Implementation,
    ) -> tuple[Tensor, Tensor]:
        x, y = x.to(dtype), y.to(dtype)  # exact: they hold values of this dtype
        lse_i, lse_j = _passes(implementation).separable_forward(x, y, scale, labels, symmetric)
        ctx.save_for_backward(lse_i, lse_j, x, y, scale, labels)
        ctx.symmetric, ctx.implementation = symmetric, implementation
        return lse_i, lse_j

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_i: Tensor, grad_j: Tensor) -> tuple[Tensor | None, ...]:
        backward = _passes(ctx.implementation).separable_backward
        gradients = backward(grad_i, grad_j, *ctx.saved_tensors, ctx.symmetric, ctx.needs_input_grad[:3])
        return *gradients, None, None, None, None


def _passes(implementation: Implementation) -> Any:
    """The module that holds both passes; Triton is imported here, at the first call."""
    if implementation != "triton":
        return dot_blocks
    from infobert_fast.kernels import separable

    return separable


def _logsumexp(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: Tensor | None,
    symmetric: bool,
    dtype: torch.dtype,
    implementation: Implementation,
) -> tuple[Tensor, Tensor]:
    """Of ``scale <y_i, x_j>`` over j for each i, and over i for each j where ``symmetric``."""
    if implementation == "triton" and torch.compiler.is_compiling():
        from infobert_fast.kernels.separable_operators import separable

        lse: tuple[Tensor, Tensor] = separable(x, y, scale, labels, symmetric, dtype)
    else:
        lse = _SeparableLogsumexp.apply(x, y, scale, labels, symmetric, dtype, implementation)
    return lse


def _check(
    local: Tensor,
    global_: Tensor,
    critic: str,
    weight: Tensor | None,
    scale: float | Tensor,
    local_index: Tensor | None,
    pair_index: Tensor | None,
    labels: Tensor | None,
    implementation: str,
    validate: bool | None,
) -> tuple[Tensor, int]:
    """Refuse, by name, what does not fit together; return the scale as a tensor, and how many pairs there are."""
    checks.choice("critic", critic, SEPARABLE_CRITICS)
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
    pairs, others = count_pairs(local, global_, local_index, pair_index, None, ("local", "global_"), validate)
    if pairs != others:
        raise ValueError(
            f"`local` gives {pairs} pairs and `global_` {others}; the counts must agree: pass `pair_index`"
        )
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (pairs,):
            was = f"{labels.dtype} of shape {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
            raise ValueError(f"`labels` was {was}; it must be torch.int64 of shape [{pairs}], one label a pair")
        checks.agree("labels", labels, "local", local, dtype=False)
    return scale.reshape(()), pairs
