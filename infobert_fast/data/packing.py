"""Sentences side by side in rows, so that an encoder computes hardly any padding: where each token goes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Packing", "lay_out", "pack_sentences"]


class Packing(NamedTuple):
    """How a padded batch ``[batch, length]`` lies in rows ``[rows, capacity]``; made on the host, sent with the batch.

    ``source[r, c]`` is a token's position in the flattened batch, 0 where a row is not full; ``sentence[r, c]`` its
    sentence, -1 there; ``place[i, t]`` a token's position in the flattened rows, -1 at padding.
    """

    source: Tensor
    sentence: Tensor
    place: Tensor


def pack_sentences(lengths: Sequence[int], width: int) -> Packing:
    """Lay sentences of these lengths, padded to ``width``, into the rows that waste least.

    Row capacities between the longest sentence and about twice it are tried; attention costs the capacity squared, so
    that of equal waste the shorter rows are taken. Longer sentences are placed first, each into the emptiest row.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest, total = lengths[order[0]], sum(lengths)
    most, fewest = max(total // longest, 1), max(total // (2 * longest), 1)
    counts = {fewest + round(step * (most - fewest) / 8) for step in range(9)} | {len(lengths)}
    rows = min((_fill(lengths, order, count) for count in counts), key=lambda rows: (_area(lengths, rows), -len(rows)))
    return lay_out(lengths, width, rows)


def lay_out(lengths: Sequence[int], width: int, rows: Sequence[Sequence[int]]) -> Packing:
    """Sentences of these lengths, padded to ``width``, in rows that name them."""
    capacity = max(sum(lengths[i] for i in row) for row in rows)
    source = torch.zeros(len(rows), capacity, dtype=torch.int64)
    sentence = torch.full((len(rows), capacity), -1, dtype=torch.int64)
    place = torch.full((len(lengths), width), -1, dtype=torch.int64)
    for number, row in enumerate(rows):
        column = 0
        for i in row:
            n = lengths[i]
            source[number, column : column + n] = torch.arange(i * width, i * width + n)
            sentence[number, column : column + n] = i
            place[i, :n] = torch.arange(number * capacity + column, number * capacity + column + n)
            column += n
    return Packing(source, sentence, place)


def _fill(lengths: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    """``count`` rows of nearly equal loads."""
    rows: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for i in order:
        load, number = loads[0]
        rows[number].append(i)
        heapq.heapreplace(loads, (load + lengths[i], number))
    return [row for row in rows if row]


def _area(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    return len(rows) * max(sum(lengths[i] for i in row) for row in rows)
