"""Sizes of the tests marked ``gpu``, in one place: full on a device, small where a device is emulated.

``make sanitize`` sets ``INFOBERT_FAST_TEST_SIZES=small`` and executes the same tests on a CPU. The small sizes take the
same branches: ragged last tiles, more columns than a split has, chunks longer than a program holds.
"""

import os
from typing import NamedTuple


class Sizes(NamedTuple):
    width: int  # hidden units of the concat-MLP critic
    hidden: tuple[int, int, int]  # of the tests of odd widths: one, even, odd
    features: int  # of the inputs that it projects
    # (rows, globals, pairs, chunk size): the paper's step, its pairs as one batch, long chunks, and a large batch
    critic: list[tuple[int, int, int | None, int | None]]
    # the paper's step, SQuAD's, and more rows of b than are looked through
    chunks: list[tuple[int, int, int, int]]
    published: int  # rows of the comparison of the two presets
    # (batch, length, d): the paper's, SQuAD's, wide rows that no tile divides, the longest sentences
    regularizers: list[tuple[int, int, int]]
    # of the dot-product critic: rows against float64, rows in several blocks, rows of a graph; their width
    dots: tuple[int, int, int]
    dot_width: int


FULL = Sizes(
    width=300,
    hidden=(1, 300, 301),
    features=64,
    critic=[(1664, 32, 1664, 32), (1664, 32, 1664, None), (1000, 900, 1000, 300), (4096, 4096, None, None)],
    chunks=[(1664, 32, 1664, 32), (608, 8, 608, 8), (5000, 900, 5000, 64)],
    published=1024,
    regularizers=[(32, 128, 1024), (8, 384, 1024), (5, 130, 8191), (3, 4096, 768)],
    dots=(1000, 12000, 3000),
    dot_width=256,
)
SMALL = Sizes(
    width=20,
    hidden=(1, 40, 41),
    features=8,
    critic=[(70, 5, 70, 32), (150, 5, 150, None), (90, 40, 100, 70), (140, 40, None, None)],
    chunks=[(70, 5, 70, 32), (30, 3, 30, 8), (140, 80, 140, 64)],
    published=70,
    regularizers=[(3, 37, 40), (2, 70, 24), (2, 33, 131), (1, 300, 12)],
    dots=(150, 300, 140),
    dot_width=16,
)
NAME = os.environ.get("INFOBERT_FAST_TEST_SIZES", "full")
if NAME not in ("full", "small"):
    raise ValueError(f'INFOBERT_FAST_TEST_SIZES was {NAME!r}; it must be "full" or "small"')
SIZES = FULL if NAME == "full" else SMALL
