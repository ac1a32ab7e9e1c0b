"""FreeLB's perturbation of the word embeddings: its random start and one ascent."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from infobert_fast import checks, reference
from infobert_fast.functional.implementation import Implementation, choose
from infobert_fast.functional.uniform import counter_uniform

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
    seed: int | None = None,
    sentence_ids: Tensor | None = None,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """A random start, zero at padding.

    l2: ``U(-1, 1) * mask * adv_init_mag / sqrt(len_i * d)`` per sentence; linf: ``U(-mag, mag) * mask``.

    With ``seed`` the entry of a sentence's t-th token and channel h is a function of ``(seed, sentence id, t, h)``
    (Philox4x32-10): the same bits on every device and by every implementation, whatever the batch's other sentences,
    their order and the padding. Magnitude, root and quotient are each rounded to the result's dtype. Without it
    PyTorch's generator draws the batch in one go, by PyTorch alone.

    Args:
        embeddings: ``[batch, length, d]``; only its shape, dtype and device matter. In half precision most of a
            perturbation would round away, so delta is float32 at least.
        attention_mask: ``[batch, length]`` of 0 and 1.
        adv_init_mag: the magnitude, >= 0; 0 gives zeros and draws nothing.
        generator: on the device of ``embeddings``; not with ``seed``.
        seed: any integer; its lower 64 bits count.
        sentence_ids: int64 ``[batch]``, which stream a sentence draws from; its place in the batch where None.
        implementation, validate: see :mod:`infobert_fast.functional`; ``implementation`` applies with ``seed``.

    Returns:
        ``[batch, length, d]``; zero at padding.

    Raises:
        TypeError, ValueError: for a negative magnitude, an unknown norm, a mask or ids that do not fit, or ``seed``
            beside ``generator``.

    Source: FreeLB (Zhu et al. 2020), algorithm 1.
    """
    checks.choice("norm_type", norm_type, NORM_TYPES)
    checks.number("adv_init_mag", adv_init_mag, low=0.0)
    _check_mask(embeddings, attention_mask, validate)
    _check_seed(seed, sentence_ids, generator, embeddings)
    if implementation == "triton" and seed is None:
        raise ValueError("`implementation` was 'triton' and `seed` None; the kernel draws from a seed: pass one")
    chosen = choose(implementation, embeddings, kernel=seed is not None)
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    if adv_init_mag == 0:
        return torch.zeros(embeddings.shape, dtype=dtype, device=embeddings.device)
    if chosen == "reference":
        return reference.freelb_init(
            embeddings.to(dtype),
            attention_mask,
            adv_init_mag,
            norm_type,
            generator,
            seed=seed,
            sentence_ids=sentence_ids,
        )
    width = embeddings.shape[-1]
    if seed is not None:
        seed = (seed + 2**63) % 2**64 - 2**63  # the same 64 bits, within int64
        if chosen == "triton":
            from infobert_fast.kernels import uniform

            return uniform.freelb_start(attention_mask, sentence_ids, width, adv_init_mag, norm_type, seed, dtype)
        delta = counter_uniform(attention_mask, sentence_ids, width, seed).to(dtype)
    else:
        delta = torch.empty(embeddings.shape, dtype=dtype, device=embeddings.device)
        delta.uniform_(-1, 1, generator=generator)
    keep = attention_mask.bool()
    scale = torch.full((), adv_init_mag, dtype=dtype, device=embeddings.device)
    if norm_type == "l2":
        scale = scale / _root_of_entries(keep, width).to(dtype)
    return delta.mul_(scale).masked_fill_(~keep.unsqueeze(-1), 0)


def freelb_step(
    delta: Tensor,
    grad: Tensor,
    attention_mask: Tensor,
    adv_lr: float,
    adv_max_norm: float = 0.0,
    norm_type: NormType = "l2",
    *,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """One ascent, ``delta + adv_lr * g / ||g||`` per sentence, projected and masked again.

    l2: ``||g||`` over a sentence's tokens and dimensions; if ``adv_max_norm > 0`` a longer delta is scaled back to it.
    linf: ``||g||`` is the sentence's largest ``|g|`` (not the sign of each entry), then delta is clamped entry by
    entry. Norms are clamped at 1e-8. Padding counts neither in the norm nor in the result. NaN in a sentence's gradient
    makes its perturbation NaN.

    Args:
        delta, grad: ``[batch, length, d]``; the gradient may be in half precision.
        attention_mask: ``[batch, length]``.
        adv_lr, adv_max_norm: >= 0.
        implementation, validate: see :mod:`infobert_fast.functional`.

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
    chosen = choose(implementation, delta, kernel=True)
    if chosen == "reference":
        return reference.freelb_step(delta, grad, attention_mask, adv_lr, adv_max_norm, norm_type)
    if chosen == "triton":
        from infobert_fast.kernels import freelb

        return freelb.freelb_step(delta.detach(), grad.detach(), attention_mask, adv_lr, adv_max_norm, norm_type)
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


def _root_of_entries(keep: Tensor, width: int) -> Tensor:
    """``sqrt(len_i width)``, float64 ``[batch, 1, 1]``, correctly rounded: the norm of the mask itself.

    ``torch.sqrt`` on a CPU is an ulp off for one number in six in float32 and for one in forty in float64. A norm ends
    with the processor's square root, and its sum of ones is exact.
    """
    ones = keep.double().unsqueeze(-1).expand(-1, -1, width)  # widened first: an expanded tensor takes no memory
    # The clamp keeps a sentence that is all padding (unseen where values are not read) at zero instead of NaN.
    return torch.linalg.vector_norm(ones, dim=(1, 2), keepdim=True).clamp(min=1)


def _sentence_norm(rows: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(rows, ord=order, dim=(1, 2), keepdim=True)


def _check_mask(rows: Tensor, attention_mask: Tensor, validate: bool | None) -> None:
    if rows.dim() != 3:
        raise ValueError(f"the embeddings have shape {list(rows.shape)}; they must be [batch, length, d]")
    checks.attention_mask(attention_mask, tuple(rows.shape[:2]), device=rows.device, validate=validate)


def _check_seed(
    seed: int | None, sentence_ids: Tensor | None, generator: torch.Generator | None, embeddings: Tensor
) -> None:
    if seed is None:
        if sentence_ids is not None:
            raise ValueError("`sentence_ids` was given without `seed`; it names streams of a seed: pass `seed` too")
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"`seed` was {seed!r}; it must be an integer")
    if generator is not None:
        raise ValueError("`seed` and `generator` were both given; the start is drawn from one of them: leave one out")
    if sentence_ids is not None:
        if sentence_ids.dtype != torch.int64 or sentence_ids.shape != embeddings.shape[:1]:
            raise ValueError(
                f"`sentence_ids` was {sentence_ids.dtype} of shape {list(sentence_ids.shape)}; "
                f"it must be int64 [{embeddings.shape[0]}], one a sentence"
            )
        checks.agree("sentence_ids", sentence_ids, "embeddings", embeddings, dtype=False)
