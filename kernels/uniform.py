"""FreeLB's random start from a counter: entry (sentence id, token, channel) under a seed is always the same number.

Philox4x32-10 (Salmon et al. 2011) with the seed as its key and the counter ``(channel / 4, token, id, id >> 32)``: four
numbers a call, the channel's remainder by 4 chooses. A token is counted among its sentence's tokens, so that neither
the batch's order nor its padding, on whichever side, changes a sentence's start. The 23 upper bits k of a number make
``(2 k + 1) 2^-23 - 1``: exact in fp32, symmetric, never 0, never +-1; ``infobert_fast.functional`` has the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .declaration import operator
from .launch import on_device


@triton.jit
def signed_uniform(number):
    """From 32 random bits to (-1, 1)."""
    return ((number >> 9).to(tl.int32) * 2 - 0x7FFFFF).to(tl.float32) * 1.1920928955078125e-07


@triton.jit(do_not_specialize=["seed", "mask_sentence", "n_tokens"])
def start_kernel(
    mask_ptr, id_ptr, out_ptr, mask_sentence, mask_token, n_tokens, n_units, seed: tl.int64, magnitude: tl.float64,
    BT: tl.constexpr, BQ: tl.constexpr, BM: tl.constexpr, IDS: tl.constexpr, L2: tl.constexpr,
):  # fmt: skip
    """The start of BT tokens, 4 BQ channels at a time: uniform numbers times the sentence's scale, zero at padding."""
    tiles = tl.cdiv(n_tokens, BT)
    i_sentence, i_tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    mask_ptr += i_sentence * mask_sentence
    dtype = out_ptr.dtype.element_ty
    earlier = tl.zeros([BM], dtype=tl.int32)
    length = tl.zeros([BM], dtype=tl.int32)
    for t in range(0, n_tokens, BM):
        o_m = t + tl.arange(0, BM)
        m = tl.load(mask_ptr + o_m.to(tl.int64) * mask_token, mask=o_m < n_tokens, other=0).to(tl.float32) != 0
        length += m.to(tl.int32)
        earlier += (m & (o_m < i_tile * BT)).to(tl.int32)
    o_t = (i_tile * BT + tl.arange(0, BT)).to(tl.int64)
    m_t = tl.load(mask_ptr + o_t * mask_token, mask=o_t < n_tokens, other=0).to(tl.float32) != 0
    token = tl.sum(earlier, 0) + tl.cumsum(m_t.to(tl.int32), 0) - 1
    scale = tl.full((), magnitude, dtype=dtype)
    if L2:
        entries = (tl.maximum(tl.sum(length, 0), 1) * n_units).to(dtype)
        # rounded as IEEE says, which the plain forms in fp32 are not on a GPU, so that PyTorch has the same bits
        scale = scale / tl.sqrt(entries) if dtype == tl.float64 else tl.div_rn(scale, tl.sqrt_rn(entries))
    sentence = tl.load(id_ptr + i_sentence) if IDS else i_sentence
    zero = tl.zeros([BT, BQ], dtype=tl.int32)
    out_ptr += (i_sentence * n_tokens + o_t)[:, None] * n_units
    for q in range(0, tl.cdiv(n_units, 4), BQ):
        o_q = q + tl.arange(0, BQ)
        r0, r1, r2, r3 = tl.philox(
            seed, zero + o_q[None, :], zero + token[:, None], zero + sentence.to(tl.int32),
            zero + (sentence >> 32).to(tl.int32),
        )  # fmt: skip
        numbers = tl.interleave(tl.interleave(r0, r2), tl.interleave(r1, r3))
        o_h = q * 4 + tl.arange(0, 4 * BQ)
        start = tl.where(m_t[:, None], signed_uniform(numbers).to(dtype) * scale, 0.0)
        tl.store(out_ptr + o_h[None, :], start, mask=(o_t < n_tokens)[:, None] & (o_h < n_units)[None, :])


TOKENS, QUADS, MASK = 8, 64, 256


def _fake(attention_mask, sentence_ids, units, magnitude, norm_type, seed, dtype):
    return attention_mask.new_empty((*attention_mask.shape, units), dtype=dtype)


@operator("freelb_start", _fake)
def freelb_start(
    attention_mask: Tensor, sentence_ids: Tensor | None, units: int, magnitude: float, norm_type: str, seed: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """``[batch, length, units]`` in ``dtype``: l2 ``U(-1, 1) magnitude / sqrt(len_i units)``, linf ``U(-1, 1)
    magnitude``, zero at padding. ``sentence_ids`` int64 [batch], the batch's order where None; ``seed`` of 64 bits.
    """
    batch, length = attention_mask.shape
    out = torch.empty((batch, length, units), device=attention_mask.device, dtype=dtype)
    if out.numel() == 0:
        return out
    ids = None if sentence_ids is None else sentence_ids.contiguous()
    with on_device(attention_mask):
        start_kernel[(batch * triton.cdiv(length, TOKENS),)](
            attention_mask, ids, out, *attention_mask.stride(), length, units, seed, float(magnitude),
            BT=TOKENS, BQ=min(QUADS, triton.next_power_of_2(max(triton.cdiv(units, 4), 4))), BM=MASK,
            IDS=ids is not None, L2=norm_type == "l2", num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out
