"""FreeLB's ascent, ``delta + adv_lr g / ||g||`` per sentence, projected and masked again, in two launches.

The first reads what the norms need, in parts of a sentence, the second adds the parts up in their order and writes the
next delta. The projection's norm is known before the move, by

    ||delta + c g||^2 = ||delta||^2 + 2 c <delta, g> + c^2 ||g||^2,      c = adv_lr / ||g||

so that projecting costs one more reading of delta and none of g. Padding is read by neither.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .declaration import operator
from .launch import on_device
from .operands import accumulator


@triton.jit
def token_mask(mask_ptr, i_sentence, o_t, mask_sentence, mask_token, n_tokens):
    """Which of the positions o_t of a sentence hold tokens."""
    ptrs = mask_ptr + i_sentence * mask_sentence + o_t * mask_token
    return tl.load(ptrs, mask=o_t < n_tokens, other=0).to(tl.float32) != 0


@triton.jit
def load_rows(x_ptr, i_sentence, o_t, o_h, m, sentence, token, unit, dtype: tl.constexpr):
    """[tokens, units] of a sentence in ``dtype``, zero outside ``m``."""
    offsets = i_sentence * sentence + o_t[:, None] * token + o_h[None, :] * unit
    return tl.load(x_ptr + offsets, mask=m, other=0.0).to(dtype)


@triton.jit(do_not_specialize=["mask_sentence", "n_tokens"])
def norm_parts_kernel(
    delta_ptr, grad_ptr, mask_ptr, part_ptr,
    delta_sentence, delta_token, delta_unit, grad_sentence, grad_token, grad_unit, mask_sentence, mask_token,
    n_tokens, n_units,
    BT: tl.constexpr, BH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Of BT tokens of a sentence, to part [programs, PARTS]: the largest |g| and whether one is NaN (PARTS 2), the sum
    of g^2 (1), or the sums of g^2, delta g and delta^2 (3).
    """
    tiles = tl.cdiv(n_tokens, BT)
    i_sentence, i_tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    o_t = (i_tile * BT + tl.arange(0, BT)).to(tl.int64)
    m_t = token_mask(mask_ptr, i_sentence, o_t, mask_sentence, mask_token, n_tokens)
    dtype = part_ptr.dtype.element_ty
    gg = tl.zeros([BT, BH], dtype=dtype)
    dg = tl.zeros([BT, BH], dtype=dtype)
    dd = tl.zeros([BT, BH], dtype=dtype)
    for h in range(0, n_units, BH):
        o_h = (h + tl.arange(0, BH)).to(tl.int64)
        m = m_t[:, None] & (o_h < n_units)[None, :]
        g = load_rows(grad_ptr, i_sentence, o_t, o_h, m, grad_sentence, grad_token, grad_unit, dtype)
        if PARTS == 2:
            gg = tl.maximum(gg, tl.abs(g))
            dg += (g != g).to(dtype)  # a maximum in hardware forgets NaN
        else:
            gg += g * g
        if PARTS == 3:
            d = load_rows(delta_ptr, i_sentence, o_t, o_h, m, delta_sentence, delta_token, delta_unit, dtype)
            dg += d * g
            dd += d * d
    part_ptr += tl.program_id(0).to(tl.int64) * PARTS
    if PARTS == 2:
        tl.store(part_ptr, tl.max(tl.max(gg, 1), 0))
    else:
        tl.store(part_ptr, tl.sum(tl.sum(gg, 1), 0))
    if PARTS >= 2:
        tl.store(part_ptr + 1, tl.sum(tl.sum(dg, 1), 0))
    if PARTS == 3:
        tl.store(part_ptr + 2, tl.sum(tl.sum(dd, 1), 0))


@triton.jit
def sum_parts(part_ptr, tiles, i: tl.constexpr, BP: tl.constexpr, PARTS: tl.constexpr):
    """A sentence's sum of part i."""
    total = tl.zeros([BP], dtype=part_ptr.dtype.element_ty)
    for p in range(0, tiles, BP):
        o_p = p + tl.arange(0, BP)
        total += tl.load(part_ptr + o_p * PARTS + i, mask=o_p < tiles, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["mask_sentence", "n_tokens"])
def ascent_kernel(
    delta_ptr, grad_ptr, mask_ptr, part_ptr, out_ptr,
    delta_sentence, delta_token, delta_unit, grad_sentence, grad_token, grad_unit, mask_sentence, mask_token,
    n_tokens, n_units, adv_lr: tl.float64, adv_max_norm: tl.float64,
    BT: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr, PARTS: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """The next delta of BT tokens, contiguous; a sentence's norms clamped at 1e-8, NaN in them kept."""
    tiles = tl.cdiv(n_tokens, BT)
    i_sentence, i_tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    o_t = (i_tile * BT + tl.arange(0, BT)).to(tl.int64)
    m_t = token_mask(mask_ptr, i_sentence, o_t, mask_sentence, mask_token, n_tokens)
    dtype = part_ptr.dtype.element_ty
    adv_lr, adv_max_norm = tl.full((), adv_lr, dtype=dtype), tl.full((), adv_max_norm, dtype=dtype)
    part_ptr += i_sentence * tiles * PARTS
    if PARTS == 2:
        largest = tl.zeros([BP], dtype=dtype)
        for p in range(0, tiles, BP):
            o_p = p + tl.arange(0, BP)
            largest = tl.maximum(largest, tl.load(part_ptr + o_p * PARTS, mask=o_p < tiles, other=0.0))
        size = tl.max(largest, 0)
        size = tl.where(sum_parts(part_ptr, tiles, 1, BP, PARTS) > 0, float("nan"), size)
    else:
        gg = sum_parts(part_ptr, tiles, 0, BP, PARTS)
        size = tl.sqrt(gg)
    rate = adv_lr / tl.where(size < 1e-8, 1e-8, size)
    shrink = tl.full((), 1.0, dtype=dtype)
    if PARTS == 3:
        dg, dd = sum_parts(part_ptr, tiles, 1, BP, PARTS), sum_parts(part_ptr, tiles, 2, BP, PARTS)
        square = dd + 2.0 * rate * dg + (rate * size) * (rate * size)
        norm = tl.sqrt(tl.where(square < 0, 0.0, square))
        shrink = tl.where(norm <= adv_max_norm, 1.0, adv_max_norm / norm)
    out_ptr += (i_sentence * n_tokens + o_t)[:, None] * n_units
    for h in range(0, n_units, BH):
        o_h = (h + tl.arange(0, BH)).to(tl.int64)
        m_h = o_h < n_units
        m = m_t[:, None] & m_h[None, :]
        g = load_rows(grad_ptr, i_sentence, o_t, o_h, m, grad_sentence, grad_token, grad_unit, dtype)
        d = load_rows(delta_ptr, i_sentence, o_t, o_h, m, delta_sentence, delta_token, delta_unit, dtype)
        moved = (d + g * rate) * shrink
        if CLAMP:
            moved = tl.where(moved > adv_max_norm, adv_max_norm, moved)
            moved = tl.where(moved < -adv_max_norm, -adv_max_norm, moved)
        moved = tl.where(m, moved, 0.0)
        tl.store(out_ptr + o_h[None, :], moved, mask=(o_t < n_tokens)[:, None] & m_h[None, :])


TOKENS, UNITS, PARTS_AT_ONCE = 16, 128, 64


def _fake(delta, grad, attention_mask, adv_lr, adv_max_norm, norm_type):
    return delta.new_empty(delta.shape)


@operator("freelb_step", _fake)
def freelb_step(
    delta: Tensor, grad: Tensor, attention_mask: Tensor, adv_lr: float, adv_max_norm: float, norm_type: str
) -> Tensor:
    """The next delta, contiguous [batch, length, d] in delta's dtype: one ascent per sentence, zero at padding.

    ``norm_type`` "l2" scales back to ``adv_max_norm`` (if > 0) per sentence, "linf" clamps each entry to it.
    """
    batch, length, units = delta.shape
    out = torch.empty((batch, length, units), device=delta.device, dtype=delta.dtype)
    if out.numel() == 0:
        return out
    tiles, width = triton.cdiv(length, TOKENS), min(UNITS, triton.next_power_of_2(max(units, 16)))
    number = 2 if norm_type == "linf" else 3 if adv_max_norm > 0 else 1
    parts = torch.empty((batch * tiles, number), device=delta.device, dtype=accumulator(delta))
    tensors = (delta, grad, attention_mask, parts)
    sizes = (*delta.stride(), *grad.stride(), *attention_mask.stride(), length, units)
    with on_device(delta):
        norm_parts_kernel[(batch * tiles,)](
            *tensors, *sizes, BT=TOKENS, BH=width, PARTS=number, num_warps=4, enable_fp_fusion=True
        )
        ascent_kernel[(batch * tiles,)](
            *tensors, out, *sizes, float(adv_lr), float(adv_max_norm), BT=TOKENS, BH=width, BP=PARTS_AT_ONCE,
            PARTS=number, CLAMP=norm_type == "linf" and adv_max_norm > 0, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out
