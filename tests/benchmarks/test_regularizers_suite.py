"""The suite of the regularisers: its gates open for what is right alone; its bytes are those of one pass."""

import pytest


@pytest.fixture
def suite():
    from infobert_fast.benchmarks.suites import bench_regularizers

    return bench_regularizers


def test_every_part_passes_its_gate(suite):
    for part in suite.PARTS:
        for name in ("eager", "infobert-fast"):
            suite.check(suite.IMPLEMENTATIONS[name], part)


def test_a_gate_that_must_not_open(suite):
    wrong = lambda part, x: tuple(1.001 * y + 1 for y in suite.PARTS[part](x, "torch"))  # noqa: E731
    for part in suite.PARTS:
        with pytest.raises(AssertionError):
            suite.check(wrong, part)


def test_bytes_of_the_papers_batch(suite):
    tokens, size = 32 * 128 * 1024, suite.DTYPE.itemsize
    least = {part: suite.least_bytes(part, 32, 128, 1024, 1664) for part in suite.PARTS}
    assert least["anchors"] == size * tokens
    assert least["club"] == least["club_sampled"] == 3 * size * tokens
    assert least["rows"] == size * (3 * 1664 * 1024 + tokens)
    assert least["start"] == 4 * tokens
