"""Operands of the score kernels: centred, scaled, sorted by the sign of ``w2``, hidden-major and padded.

``relu(t) = (t + |t|) / 2`` and ``w relu(t) = sign(w) (|w| t + ||w| t|) / 2``, so with ``A = |w2| (a - c) / 2`` and
``B = |w2| (b + c) / 2`` a score is a signed sum of ``|A + B|`` plus the signed sums ``alpha`` of A and ``beta`` of B.
The shift ``c`` leaves ``a + b`` as it is; ``c = (mean a - mean b) / 2`` keeps the digits that a common offset of the
rows would cost.
"""

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_row", "n_total"], do_not_specialize_on_alignment=["index_ptr"])
def operand_kernel(
    x_ptr, index_ptr, w_ptr, shift_ptr, order_ptr, bounds_ptr, out_ptr, sum_ptr,
    stride_row, stride_unit, n_pad, n_row, n_total, n_slots, out_step,
    BR: tl.constexpr, BS: tl.constexpr, HAS_INDEX: tl.constexpr,
):  # fmt: skip
    """out[s, q] = |w2| (x[row(q)] + shift) / 2 at the unit of slot s; sum[q] = its sum over slots, signed by w2."""
    o_q = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_r = o_q % n_pad
    o_p = o_q // n_pad * n_row + o_r
    m_q = (o_r < n_row) & (o_p < n_total)
    row = tl.load(index_ptr + o_p, mask=m_q, other=0).to(tl.int64) if HAS_INDEX else o_p
    dtype = out_ptr.dtype.element_ty
    n_plus = tl.load(bounds_ptr)
    total = tl.zeros([BR], dtype=dtype)
    for s in range(0, n_slots, BS):
        o_s = s + tl.arange(0, BS)
        unit = tl.load(order_ptr + o_s)
        m_s = unit >= 0
        x = tl.load(
            x_ptr + row[:, None] * stride_row + unit[None, :] * stride_unit, mask=m_q[:, None] & m_s[None, :], other=0.0
        )
        w = tl.abs(tl.load(w_ptr + unit, mask=m_s, other=0.0).to(dtype)) * 0.5
        x = (x.to(dtype) + tl.load(shift_ptr + unit, mask=m_s, other=0.0)[None, :]) * w[None, :]
        x = tl.where(m_q[:, None] & m_s[None, :], x, 0.0)
        total += tl.sum(tl.where((o_s < n_plus)[None, :], x, -x), 1)
        # x - x is 0, or NaN where x is not finite: a row with an infinity must not come out finite where w2 < 0
        total += tl.sum(x - x, 1)
        tl.store(out_ptr + o_s.to(tl.int64)[:, None] * out_step + o_q[None, :], tl.trans(x))
    tl.store(sum_ptr + o_q, total)


BLOCK_ROWS, BLOCK_SLOTS = 32, 32


def accumulator(tensor):
    """fp32, or fp64 for fp64 inputs (which only the interpreter runs at speed that nobody minds)."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def slot_order(w2):
    """(order [slots] int32, -1 in padding; bounds [2] int32): units with w2 >= 0 in slots [0, bounds[0]), the others
    up to bounds[1].

    Both bounds are multiples of 4, the score loop's unrolling, and stay on the device: no weight visits the host.
    """
    H = w2.shape[0]
    n_slots = triton.cdiv(H + 6, BLOCK_SLOTS) * BLOCK_SLOTS
    negative = w2 < 0
    before = negative.cumsum(0, dtype=torch.int32)
    units = torch.arange(H, device=w2.device, dtype=torch.int32)
    n_plus = (H - before[-1:] + 3) // 4 * 4
    slot = torch.where(negative, n_plus + before - 1, units - before)
    order = torch.full((n_slots,), -1, device=w2.device, dtype=torch.int32)
    order[slot.long()] = units
    return order, torch.cat([n_plus, n_plus + (before[-1:] + 3) // 4 * 4]).to(torch.int32)


def centre(a, b, dtype):
    """c [H] = (mean a - mean b) / 2 in the accumulator's dtype."""
    return (a.mean(0, dtype=dtype) - b.mean(0, dtype=dtype)) / 2


def operand(x, index, w2, shift, order, bounds, problems, n_row, n_total, n_pad):
    """(hidden-major operand [slots, problems n_pad], signed sums [problems n_pad]), zero in padding."""
    out = torch.empty((order.shape[0], problems * n_pad), device=x.device, dtype=shift.dtype)
    sums = torch.empty((problems * n_pad,), device=x.device, dtype=shift.dtype)
    operand_kernel[(problems * n_pad // BLOCK_ROWS,)](
        x, index, w2, shift, order, bounds, out, sums,
        x.stride(0), x.stride(1), n_pad, n_row, n_total, order.shape[0], out.stride(0),
        BR=BLOCK_ROWS, BS=BLOCK_SLOTS, HAS_INDEX=index is not None,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out, sums
