"""Anchors: the tokens of each sentence whose gradient norm has a rank inside a window, in two launches.

Ranks are counted, not sorted: ``r_t = #{ s : (norm_s, s) < (norm_t, t) }`` is a total order of its own, so that every
anchor knows its place in the output by its rank and nothing is scanned or compacted afterwards. A pair of tokens costs
two integer instructions: up to some thousand tokens that is less than reading the gradients takes, it works in tiles
that fill the chip, and a chosen token is written where it belongs, once.

Norms are compared squared (the order is the same) and as integers: the bits of floats that are not negative ascend
with them, infinity stands above every finite number and the largest integer, which is no norm, marks padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .declaration import operator
from .launch import on_device
from .operands import accumulator


# a batch has its own length and number of anchors: not specialised, or their factors would mean a compilation
@triton.jit(do_not_specialize=["mask_sentence", "n_tokens", "n_out"])
def norm_kernel(
    grad_ptr, mask_ptr, key_ptr, count_ptr, out_ptr,
    grad_sentence, grad_token, grad_unit, mask_sentence, mask_token, n_tokens, n_units, n_out,
    BT: tl.constexpr, BH: tl.constexpr, BM: tl.constexpr, PRESET: tl.constexpr,
):  # fmt: skip
    """Keys [batch, length] of the squared norms, tokens of each sentence [batch], and zeros in the output of the next
    kernel if ``PRESET``, so that a wrong count given by the host leaves no uninitialised index.
    """
    tiles = tl.cdiv(n_tokens, BT)
    i_sentence, i_tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    o_t = (i_tile * BT + tl.arange(0, BT)).to(tl.int64)
    mask_ptr += i_sentence * mask_sentence
    m_t = tl.load(mask_ptr + o_t * mask_token, mask=o_t < n_tokens, other=0).to(tl.float32) != 0
    grad_ptrs = grad_ptr + i_sentence * grad_sentence + o_t[:, None] * grad_token
    DOUBLE: tl.constexpr = key_ptr.dtype.element_ty == tl.int64
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    squares = tl.zeros([BT, BH], dtype=dtype)
    for h in range(0, n_units, BH):
        o_h = (h + tl.arange(0, BH)).to(tl.int64)
        m = m_t[:, None] & (o_h < n_units)[None, :]
        g = tl.load(grad_ptrs + o_h[None, :] * grad_unit, mask=m, other=0.0).to(dtype)
        squares += g * g
    norm = tl.sum(squares, 1)
    norm = tl.where(norm == norm, norm, float("inf"))
    key = norm.to(key_ptr.dtype.element_ty, bitcast=True)
    PADDING: tl.constexpr = 0x7FFFFFFFFFFFFFFF if DOUBLE else 0x7FFFFFFF
    tl.store(key_ptr + i_sentence * n_tokens + o_t, tl.where(m_t, key, PADDING), mask=o_t < n_tokens)
    if i_tile == 0:
        count = tl.zeros([BM], dtype=tl.int32)
        for t in range(0, n_tokens, BM):
            o_m = (t + tl.arange(0, BM)).to(tl.int64)
            m = tl.load(mask_ptr + o_m * mask_token, mask=o_m < n_tokens, other=0)
            count += (m.to(tl.float32) != 0).to(tl.int32)
        tl.store(count_ptr + i_sentence, tl.sum(count, 0))
    if PRESET:
        o_out = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
        tl.store(out_ptr + o_out, tl.zeros([BT], dtype=tl.int64), mask=o_out < n_out)


@triton.jit
def ceil_product(n, fraction):
    """ceil(n fraction) in double precision, as an integer."""
    product = n.to(tl.float64) * fraction
    whole = product.to(tl.int32)
    return whole + (whole.to(tl.float64) < product).to(tl.int32)


@triton.jit(do_not_specialize=["n_tokens", "n_out"])
def rank_kernel(
    key_ptr, count_ptr, out_ptr, n_tokens, n_out, cl: tl.float64, ch: tl.float64,
    BT: tl.constexpr, BB: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """Rank BT tokens of a sentence and write those of the window ``ceil(n cl) <= rank < ceil(n ch)``.

    ``FLAT``: ``i_sentence n_tokens + t`` at the anchor's place, else a bool for every token.
    """
    tiles = tl.cdiv(n_tokens, BT)
    i_sentence, i_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    o_l = tl.arange(0, BT)
    o_t = i_tile * BT + o_l
    key_ptr += i_sentence.to(tl.int64) * n_tokens
    DOUBLE: tl.constexpr = key_ptr.dtype.element_ty == tl.int64
    PADDING: tl.constexpr = 0x7FFFFFFFFFFFFFFF if DOUBLE else 0x7FFFFFFF
    WORD: tl.constexpr = tl.uint64 if DOUBLE else tl.uint32
    SIGN: tl.constexpr = 63 if DOUBLE else 31
    key = tl.load(key_ptr + o_t, mask=o_t < n_tokens, other=PADDING)
    # equal keys rank by position: those of earlier tiles stand before, those of later ones behind
    before = (key[None, :] < key[:, None]) | ((key[None, :] == key[:, None]) & (o_l[None, :] < o_l[:, None]))
    ranks = before.to(tl.int32)
    # a < b is the sign of a - b, in range for keys that are not negative: added to a sum it is IADD + LEA.HI, where the
    # comparison is compiled to four instructions; key + 1 wraps for padding, whose rank nobody reads
    for s in range(0, i_tile * BT, BT):
        apart = tl.load(key_ptr + s + o_l)[None, :] - (key + 1)[:, None]
        ranks += (apart.to(WORD, bitcast=True) >> SIGN).to(tl.int32)
    for s in range(i_tile * BT + BT, n_tokens, BT):
        apart = tl.load(key_ptr + s + o_l, mask=s + o_l < n_tokens, other=PADDING)[None, :] - key[:, None]
        ranks += (apart.to(WORD, bitcast=True) >> SIGN).to(tl.int32)
    rank = tl.sum(ranks, 1)
    n = tl.load(count_ptr + i_sentence)
    start = ceil_product(n, cl)
    chosen = (key != PADDING) & (rank >= start) & (rank < ceil_product(n, ch))
    if FLAT:
        earlier = tl.zeros([BB], dtype=tl.int64)
        for j in range(0, i_sentence, BB):
            n_j = tl.load(count_ptr + j + tl.arange(0, BB), mask=j + tl.arange(0, BB) < i_sentence, other=0)
            earlier += ceil_product(n_j, ch) - ceil_product(n_j, cl)
        place = tl.sum(earlier, 0) + rank - start
        tl.store(out_ptr + place, i_sentence.to(tl.int64) * n_tokens + o_t, mask=chosen & (place < n_out))
    else:
        tl.store(out_ptr + i_sentence.to(tl.int64) * n_tokens + o_t, chosen, mask=o_t < n_tokens)


# Four warps: 32 gradient entries a thread in flight, 32 pairs of tokens a thread.
NORM_TOKENS, NORM_UNITS, NORM_MASK, RANK_TOKENS, RANK_SENTENCES = 8, 512, 256, 64, 128


def _select_fake(grad, attention_mask, cl, ch):
    return grad.new_empty(attention_mask.shape, dtype=torch.bool)


@operator("select_anchors", _select_fake)
def select_anchors(grad: Tensor, attention_mask: Tensor, cl: float, ch: float) -> Tensor:
    """bool [batch, length]: rank r among a sentence's n tokens has ``ceil(n cl) <= r < ceil(n ch)``."""
    out = torch.empty(attention_mask.shape, device=grad.device, dtype=torch.bool)
    return _choose(grad, attention_mask, cl, ch, out)


def _indices_fake(grad, attention_mask, cl, ch, count):
    return grad.new_empty((count,), dtype=torch.int64)


@operator("anchor_indices", _indices_fake)
def anchor_indices(grad: Tensor, attention_mask: Tensor, cl: float, ch: float, count: int) -> Tensor:
    """The same anchors as int64 [count], ``i length + t``, sentence by sentence by ascending norm.

    ``count`` is the sum of ``ceil(n ch) - ceil(n cl)`` over sentences, known where their lengths are: nothing waits.
    """
    return _choose(grad, attention_mask, cl, ch, torch.empty((count,), device=grad.device, dtype=torch.int64))


def _choose(grad, attention_mask, cl, ch, out):
    batch, length, units = grad.shape
    if out.numel() == 0:
        return out
    double = accumulator(grad) == torch.float64
    keys = torch.empty((batch, length), device=grad.device, dtype=torch.int64 if double else torch.int32)
    counts = torch.empty((batch,), device=grad.device, dtype=torch.int32)
    flat = out.dtype == torch.int64
    with on_device(grad):
        norm_kernel[(batch * triton.cdiv(length, NORM_TOKENS),)](
            grad, attention_mask, keys, counts, out,
            *grad.stride(), *attention_mask.stride(), length, units, out.numel(),
            BT=NORM_TOKENS, BH=min(NORM_UNITS, triton.next_power_of_2(max(units, 16))), BM=NORM_MASK, PRESET=flat,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        rank_kernel[(batch * triton.cdiv(length, RANK_TOKENS),)](
            keys, counts, out, length, out.numel(), float(cl), float(ch),
            BT=RANK_TOKENS, BB=RANK_SENTENCES, FLAT=flat, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out
