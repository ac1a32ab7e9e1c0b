"""What the compiler makes of the critic's kernels for chips that are not here: spills, registers, instructions."""

import aot
import pytest
import triton

# additions that an exact score costs per pair and hidden unit: two; the rest is loads and addresses
SCORE_CEILING, SUM_CEILING = 2.45, 2.7
# A relu of a short chunk costs three and a half (addition, maximum, product, half an addition), its mask sum two; what
# 16 rows add is loads and addresses that few scores share
CHUNK_CEILINGS = {
    "chunk_forward": 5.8,
    "chunk_bound, scores, 16": 6.2,
    "chunk_bound, scores": 5.0,
    "chunk_bound, sums": 3.4,
    "chunk_backward": 3.6,
}
# half an instruction for the packed relu or mask, an eighth for the product, the rest is loads and addresses
FAST_CEILING, FAST_SUM_CEILING = 0.95, 0.95
SHARED_BYTES = 48 * 1024
# Three programs of four warps on a multiprocessor of Hopper. Triton 3.6 spills 16 bytes in one kernel, outside its
# loops, to reach the next step of occupancy, and needs more for short chunks, most of all with rows in half precision.
OLD = tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 9)
REGISTERS, SPILL_BYTES = 168, 16 if OLD else 0
if OLD:
    CHUNK_CEILINGS |= {"chunk_forward": 6.7, "chunk_bound, sums": 3.6, "chunk_backward": 5.2}


@pytest.fixture(scope="module")
def table():
    return aot.table("critic")


def test_every_kernel_is_there(table):
    assert len(table) == 3 * len({row["name"] for row in table})
    assert {row["name"].split(",")[0] for row in table} == {
        "logsumexp", "weights", "fast_logsumexp", "merge", "operand", "mask_sum", "finish", "segment_sum",
        "chunk_forward", "chunk_backward", "chunk_bound", "gather_parts", "fast_mask_sum",
    }  # fmt: skip


def test_nothing_spills(table):
    assert aot.above(table, "stack", SPILL_BYTES) == {}


def test_shared_memory(table):
    assert aot.above(table, "shared", SHARED_BYTES) == {}


def test_registers_leave_room_for_several_programs(table):
    # but not of chunk_bound: the paper's regime has fewer of its programs than the chip has multiprocessors
    exact = [row for row in table if row["capability"] == 90 and not row["name"].startswith(("fast", "chunk_bound"))]
    assert aot.above(exact, "registers", REGISTERS) == {}


@pytest.mark.parametrize(
    ("kernels", "ceiling"),
    [
        (("logsumexp", "weights"), SCORE_CEILING),
        (("mask_sum",), SUM_CEILING),
        (("fast_logsumexp",), FAST_CEILING),
        (("fast_mask_sum",), FAST_SUM_CEILING),
    ],
    ids=["scores", "sums", "fast scores", "fast sums"],
)
def test_instructions_per_pair_and_hidden_unit(table, kernels, ceiling):
    rows = [row for row in table if row["name"].startswith(kernels) and row["per_unit"] is not None]
    assert rows
    assert aot.above(rows, "per_unit", ceiling) == {}


@pytest.mark.parametrize("kernel", CHUNK_CEILINGS)
def test_instructions_of_short_chunks(table, kernel):
    rows = [row for row in table if row["name"].startswith(kernel)]
    if kernel == "chunk_bound, scores":
        rows = [row for row in rows if not row["name"].endswith("16")]
    assert rows
    assert aot.above(rows, "per_unit", CHUNK_CEILINGS[kernel]) == {}


def test_the_fast_preset_uses_tensor_cores(table):
    assert all(row["tensor_cores"] == row["name"].startswith("fast") for row in table)
