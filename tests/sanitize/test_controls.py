"""A sanitizer that finds nothing must prove that it can: one fault at a time is planted in a copy of the kernels.

Each is caught at its line, or shows in the values, or is named in ``docs/kernels.md`` with the tool that sees it.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from oracle import make_case, values_and_gradients
from ttsem.sanitize import KernelFault

# (rows, hidden units, options of `make_case`, precision): all pairs, both presets, short chunks, several splits of
# columns and of the sums
ALL_PAIRS = 37, 40, {"globals_": 35}, "exact"
FAST = 37, 40, {"globals_": 35}, "fast"
CHUNKS = 37, 140, {"globals_": 9, "pairs": 37, "chunk_size": 7}, "exact"
SPLITS = 320, 12, {"globals_": 20}, "exact"
BLOCKS = 256, 12, {"globals_": 64}, "exact"


class Planted(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    problem: tuple
    caught: str | None  # the fault's kind; None where it shows in the values alone


PLANTED = [
    Planted(
        "no mask on the store of a chunk's log-sum-exp", "chunks.py",
        "tl.store(lse_ptr + first + o_i, lse, mask=o_i < n)", "tl.store(lse_ptr + first + o_i, lse)",
        CHUNKS, "oob_write",
    ),
    Planted(
        "no mask on the store of the maxima", "scores.py",
        "tl.store(m_ptr + p_part, m, mask=m_i)", "tl.store(m_ptr + p_part, m)",
        ALL_PAIRS, "oob_write",
    ),
    Planted(
        "no mask on the store of the sums", "scores.py",
        "tl.store(s_ptr + p_part, s, mask=m_i)", "tl.store(s_ptr + p_part, s)",
        ALL_PAIRS, "oob_write",
    ),
    Planted(
        "no mask on the store of the fast sums", "fast_sums.py",
        "tl.store(out_ptrs, total, mask=m_out)", "tl.store(out_ptrs, total)",
        FAST, "poison",
    ),
    Planted(
        "a segment that ends one row late", "mask_sums.py",
        "end = tl.load(start_ptr + r + 1)", "end = tl.load(start_ptr + r + 1) + 1",
        CHUNKS, "oob_read",
    ),
    Planted(
        "an operand with one step too many", "operands.py",
        "for s in range(0, n_slots, BS):", "for s in range(0, n_slots + 1, BS):",
        ALL_PAIRS, "oob_read",
    ),
    Planted(
        "a sum over one pair too many", "mask_sums.py",
        "tl.minimum(n_valid, first + k_per_split), UNROLL", "tl.minimum(n_valid, first + k_per_split) + 1, UNROLL",
        BLOCKS, "oob_read",
    ),
    Planted(
        "a chunk's sum that leaves out its last pair", "chunks.py",
        "for k in range(0, n, UNROLL):", "for k in range(0, n - 1, UNROLL):",
        CHUNKS, None,
    ),
    Planted(
        "scores with one hidden unit too many", "scores.py",
        "for _ in range(n_both, n_plus, UNROLL):", "for _ in range(n_both, n_plus + 1, UNROLL):",
        ALL_PAIRS, None,
    ),
    Planted(
        "programs that share their part of the weight's gradient", "chunks.py",
        "dw_ptr += (chunk * tl.num_programs(1) + tl.program_id(1)) * H",
        "dw_ptr += chunk * tl.num_programs(1) * H",
        CHUNKS, "race",
    ),
    Planted(
        "programs that share their scratch memory", "chunks.py",
        "program = (chunk * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)",
        "program = chunk",
        CHUNKS, "race",
    ),
    Planted(
        "splits that write the same row", "scores.py",
        "tl.store(m_ptr + p_part, m, mask=m_i)", "tl.store(m_ptr + p_i, m, mask=m_i)",
        SPLITS, "race",
    ),
    Planted(
        "a sum that starts from memory which nobody wrote", "mask_sums.py",
        "    if ACCUMULATE:\n        acc +=", "    if True:\n        acc +=",
        ALL_PAIRS, None,
    ),
]  # fmt: skip


def run(kernels, problem):
    rows, width, options, precision = problem
    case = make_case(rows, width, **options, device="cuda")
    expected, grad = values_and_gradients(case, torch.float64)
    lse, scores = kernels.pairwise_mlp_forward(*case.operands, case.pairs, precision=precision)
    gradients = kernels.pairwise_mlp_backward(
        grad.float(), lse, *case.operands, case.pairs, scores=scores, precision=precision
    )
    return zip((lse, *gradients), expected, strict=True)


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.what)
def test_a_planted_fault_is_found(fault, planted):
    kernels = planted(fault.file, fault.old, fault.new)
    if fault.caught is None:
        errors = [(out - exact).abs().max() / exact.abs().max() for out, exact in run(kernels, fault.problem)]
        assert not all(error < 1e-4 for error in errors), errors  # NaN is no small error either
    else:
        with pytest.raises(KernelFault) as stopped:
            run(kernels, fault.problem)
        found = stopped.value.fault
        assert found.kind == fault.caught
        # of a race inside a function that the kernel calls the tool knows no line
        assert Path(found.source_file).name in (fault.file, "")


@pytest.mark.parametrize("problem", [ALL_PAIRS, FAST, CHUNKS, SPLITS], ids=["all pairs", "fast", "chunks", "splits"])
def test_without_a_fault_nothing_is_found(problem):
    from infobert_fast.kernels import pairwise_mlp

    for out, exact in run(pairwise_mlp, problem):
        assert (out - exact).abs().max() <= (1e-4 if problem is not FAST else 5e-2) * exact.abs().max()
