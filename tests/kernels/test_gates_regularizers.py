"""What the compiler makes of the kernels around the critic for chips that are not here: spills, registers, memory."""

import aot
import pytest
import triton

# Four programs of four warps on a multiprocessor at 128 registers, and the loads in flight keep memory busy. Triton 3.6
# needs more for the ranks.
OLD = tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 9)
REGISTERS, SHARED_BYTES = 152 if OLD else 128, 16 * 1024
RANK_CEILING = 2.6


@pytest.fixture(scope="module")
def table():
    return aot.table("regularizers")


def test_every_kernel_is_there(table):
    assert {row["name"].split(",")[0] for row in table} == {
        "norm", "rank", "moments", "merge_moments", "club_backward", "distance", "merge_distances", "sampled_backward",
        "inverse", "scatter_rows", "norm_parts", "ascent", "start",
    }  # fmt: skip


def test_nothing_spills(table):
    assert aot.above(table, "stack", 0) == {}


def test_registers_and_shared_memory(table):
    assert aot.above(table, "registers", REGISTERS) == {}
    assert aot.above(table, "shared", SHARED_BYTES) == {}


def test_instructions_of_a_rank_per_pair_of_tokens(table):
    """IADD and LEA.HI; the rest is loads and addresses."""
    rows = [row for row in table if row["name"].startswith("rank")]
    assert all(row["per_unit"] is not None for row in rows)
    assert aot.above(rows, "per_unit", RANK_CEILING) == {}
