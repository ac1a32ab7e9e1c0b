"""FreeLB's perturbation of the word embeddings: its random start and one ascent."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from infobert_fast import checks

__all__ = ["NORM_TYPES", "NormType", "freelb_init", "freelb_step"]

NormType = Literal["l2", "linf"]
NORM_TYPES: tuple[NormType, ...] = ("l2", "linf")


def freelb_init(
    embeddings: Tensor,
    attention_mask: Tensor,
    adv_init_mag: float,
    norm_type: NormType = "l2",
    generator: torch.Generator | None = None,
    *,
    validate: bool | None = None,
) -> Tensor:
    """A random start, zero at padding.

    l2: ``U(-1, 1) * mask * adv_init_mag / sqrt(len_i * d)`` per sentence; linf: ``U(-mag, mag) * mask``.

    Args:
        embeddings: ``[batch, length, d]``; only its shape, dtype and device matter. In half precision most of a
            perturbation would round away, so delta is float32 at least.
        attention_mask: ``[batch, length]`` of 0 and 1.
        generator: on the device of ``embeddings``.
        adv_init_mag: the magnitude, >= 0; 0 gives zeros and draws nothing.

    Returns:
        ``[batch, length, d]``; zero at padding.

    Raises:
        ValueError: for a negative magnitude, an unknown norm or a mask that does not fit.

    Source: FreeLB (Zhu et al. 2020), algorithm 1.
    """
    checks.choice("norm_type", norm_type, NORM_TYPES)
    checks.number("adv_init_mag", adv_init_mag, low=0.0)
    _check_mask(embeddings, attention_mask, validate)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    delta = torch.zeros(embeddings.shape, dtype=dtype, device=embeddings.device)
    if adv_init_mag == 0:
        return delta
    delta.uniform_(-adv_init_mag, adv_init_mag, generator=generator)
    mask = attention_mask.to(dtype).unsqueeze(-1)
    if norm_type == "l2":
        # The clamp keeps a sentence that is all padding (unseen where values are not read) at zero instead of NaN.
        mask = mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) * embeddings.shape[-1]).sqrt()
    return delta.mul_(mask)


def freelb_step(
    delta: Tensor,
    grad: Tensor,
    attention_mask: Tensor,
    adv_lr: float,
    adv_max_norm: float = 0.0,
    norm_type: NormType = "l2",
    *,
    validate: bool | None = None,
) -> Tensor:
    """One ascent, ``delta + adv_lr * g / ||g||`` per sentence, projected and masked again.

    l2: ``||g||`` over a sentence's tokens and dimensions; if ``adv_max_norm > 0`` a longer delta is scaled back to it.
    linf: ``||g||`` is the sentence's largest ``|g|`` (not the sign of each entry), then delta is clamped entry by
    entry. Norms are clamped at 1e-8. Padding counts neither in the norm nor in the result. NaN in a sentence's gradient
    makes its perturbation NaN.

    Args:
        delta, grad: ``[batch, length, d]``.
        attention_mask: ``[batch, length]``.
        adv_lr, adv_max_norm: >= 0.

    Returns:
        The next delta, in delta's dtype, without graph.

    Raises:
        ValueError: for negative magnitudes, an unknown norm or shapes that do not fit.

    Source: FreeLB (Zhu et al. 2020), algorithm 1, as InfoBERT's trainer computes it.
    """
    checks.choice("norm_type", norm_type, NORM_TYPES)
    checks.number("adv_lr", adv_lr, low=0.0)
    checks.number("adv_max_norm", adv_max_norm, low=0.0, advice="0 means no projection")
    if delta.shape != grad.shape:
        raise ValueError(f"`grad` has shape {list(grad.shape)}; it must be that of `delta`, {list(delta.shape)}")
    checks.agree("grad", grad, "delta", delta, dtype=False)
    _check_mask(delta, attention_mask, validate)
    keep = attention_mask.bool().unsqueeze(-1)
    order = 2.0 if norm_type == "l2" else math.inf
    with torch.no_grad():
        g = grad.to(delta.dtype).masked_fill(~keep, 0)
        out = delta + adv_lr * g / _sentence_norm(g, order).clamp(min=1e-8)
        out = out.masked_fill(~keep, 0)
        if adv_max_norm > 0 and norm_type == "l2":
            out = out * (adv_max_norm / _sentence_norm(out, order).clamp(min=1e-8)).clamp(max=1.0)
        elif adv_max_norm > 0:
            out = out.clamp(-adv_max_norm, adv_max_norm)
    return out


def _sentence_norm(rows: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(rows, ord=order, dim=(1, 2), keepdim=True)


def _check_mask(rows: Tensor, attention_mask: Tensor, validate: bool | None) -> None:
    if rows.dim() != 3:
        raise ValueError(f"the embeddings have shape {list(rows.shape)}; they must be [batch, length, d]")
    checks.attention_mask(attention_mask, tuple(rows.shape[:2]), device=rows.device, validate=validate)
