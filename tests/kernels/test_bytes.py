"""Bytes that the kernels move, counted lane by lane in the interpreter, over the least that anybody could move."""

import pytest
import torch
import triton

from infobert_fast.kernels import anchors, club, freelb, rows, sampled_club, uniform

if torch.cuda.is_available():
    pytest.skip("the interpreter counts", allow_module_level=True)

BATCH, LENGTH, WIDTH = 2, 128, 1024
TOKENS = BATCH * LENGTH * WIDTH


@pytest.fixture
def moved(monkeypatch):
    """``moved(function)``: bytes of the active lanes of all loads and stores of a call's kernels."""
    builder, total = triton.runtime.interpreter.InterpreterBuilder, [0]
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self, ptrs, mask, *args, **kwargs):
        total[0] += int(mask.data.astype(bool).sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return load(self, ptrs, mask, *args, **kwargs)

    def counted_store(self, ptrs, value, mask, *args, **kwargs):
        total[0] += int(mask.data.astype(bool).sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return store(self, ptrs, value, mask, *args, **kwargs)

    monkeypatch.setattr(builder, "create_masked_load", counted_load)
    monkeypatch.setattr(builder, "create_masked_store", counted_store)

    def count(function):
        total[0] = 0
        function()
        return total[0]

    return count


def batch():
    torch.manual_seed(0)
    grad, y = (torch.randn(BATCH, LENGTH, WIDTH).bfloat16() for _ in range(2))
    return grad, y.flatten(0, 1), torch.ones(BATCH, LENGTH, dtype=torch.int64)


def test_bytes_over_the_least(moved, monkeypatch):
    """The limits are what the design gives, rounded up; ``benchmarks/NOTES-regularizers.md`` has the table."""
    monkeypatch.setattr(club, "LEAST_ROWS", 256)  # rows a program at 256 x 128 tokens
    grad, y, mask = batch()
    flat, bf16, fp32 = mask.flatten(), 2 * TOKENS, 4 * TOKENS
    partner, index = torch.randperm(len(y)), torch.randperm(len(y))[:104]
    delta = 0.01 * grad.float()
    bound, *kept = club.club_forward(y, flat)
    _, total = sampled_club.sampled_club_forward(y, partner, flat)
    gathered = y[index]
    ratios, limits = {}, {}
    for name, least, limit, function in (
        ("anchors", bf16, 1.03, lambda: anchors.anchor_indices(grad, mask, 0.5, 0.9, 104)),
        ("club forward", bf16, 1.15, lambda: club.club_forward(y, flat)),
        ("club backward", 2 * bf16, 1.08, lambda: club.club_backward(bound, y, flat, *kept)),
        ("sampled forward", bf16, 2.02, lambda: sampled_club.sampled_club_forward(y, partner, flat)),
        (
            "sampled backward",
            2 * bf16,
            2.03,
            lambda: sampled_club.sampled_club_backward(bound, y, partner, flat, total),
        ),
        ("rows backward", bf16 + 2 * gathered.numel(), 1.02, lambda: rows.scatter_rows(gathered, index, y, True)),
        ("start", fp32, 1.05, lambda: uniform.freelb_start(mask, None, WIDTH, 0.1, "l2", 1, torch.float32)),
        ("ascent", bf16 + 2 * fp32, 1.22, lambda: freelb.freelb_step(delta, grad, mask, 0.1, 0.0, "l2")),
        ("projected", bf16 + 2 * fp32, 1.62, lambda: freelb.freelb_step(delta, grad, mask, 0.1, 0.1, "l2")),
    ):
        ratios[name] = moved(function) / least
        limits[name] = limit
    print({name: round(ratio, 3) for name, ratio in ratios.items()})  # pytest -s: the table of the notes
    assert {name: ratio for name, ratio in ratios.items() if not 1 <= ratio <= limits[name]} == {}
