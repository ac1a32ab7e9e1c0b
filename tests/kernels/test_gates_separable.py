"""What the compiler makes of the dot-product kernels for chips that are not here: spills, registers, bytes a score."""

import aot
import pytest

# two programs of four warps on a multiprocessor; 64 scores a thread are in flight in each
REGISTERS = 232
# twice an exponential with its range handling, the mask, the maximum and the sum, by rows and by columns
PLAIN_CEILING, LABELS_CEILING = 28, 38


@pytest.fixture(scope="module")
def table():
    return aot.table("separable")


def test_nothing_spills_and_registers_leave_room(table):
    assert len(table) == 3 * len({row["name"] for row in table}) == 36
    assert aot.above(table, "stack", 0) == {}
    assert aot.above(table, "registers", REGISTERS) == {}


@pytest.mark.parametrize(("kernel", "bytes_"), [("partial", 4), ("weights bytes, fp32", 8), ("weights bytes, bf16", 6)])
def test_each_score_is_read_once_and_written_once(table, kernel, bytes_):
    rows = [row for row in table if row["name"].startswith(kernel) and "bytes" in row["name"]]
    assert [row["per_unit"] for row in rows] == [bytes_] * 3


@pytest.mark.parametrize(("labels", "ceiling"), [("labels=False", PLAIN_CEILING), ("labels=True", LABELS_CEILING)])
def test_instructions_per_score(table, labels, ceiling):
    rows = [row for row in table if labels in row["name"]]
    assert rows
    assert aot.above(rows, "per_unit", ceiling) == {}
