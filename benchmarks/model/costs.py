"""What InfoBERT's parts do, by count: operations, bytes of memory, operators, and what ranks send each other."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

HIDDEN = 300
MIB = 2**20
# Operators that a call dispatches however few its pairs are, views aside: counted on a CPU, forward + backward.
CRITIC_OPERATORS, PATH_OPERATORS, CLUB_OPERATORS = 85, {"chunk": 158, "batch": 140, "all": 140}, 28

Negatives = Literal["chunk", "batch", "all"]
Engine = Literal["ddp", "zero2"]


class Cost(NamedTuple):
    """What one rank does.

    Attributes:
        fp32: instructions of the critic's pairs.
        projected: multiply-adds of products in fp32, the critic's.
        products: multiply-adds of the encoder's products.
        bytes: of its memory, read and written.
        operators: dispatched, beside those that grow with the work.
        received: bytes from other ranks, by a ring.
        mib: held at the end.
    """

    fp32: float = 0.0
    projected: float = 0.0
    products: float = 0.0
    bytes: float = 0.0
    operators: float = 0.0
    received: float = 0.0
    mib: float = 0.0

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, number: float) -> Cost:
        return Cost(*(number * value for value in self))


def summed(size: float, ranks: int) -> float:
    """Bytes received in an all-reduce of so many: R-th parts go round the ring twice."""
    return 2 * (ranks - 1) / ranks * size


def critic(rows: float, columns: float, width: int, ranks: int = 1, hidden: int = HIDDEN) -> Cost:
    """InfoNCE forward + backward on one rank: its ``rows`` sentences against ``columns`` pairs of each of the ranks.

    Six instructions a pair and hidden unit; three products a projected row, one forward and two backward. From the
    other ranks come their projected pairs, their shares of the gradient of its own, and their shares of the bound.
    Where ranks have different numbers of pairs, ``columns`` is the largest: rows are padded to it for the journey. Held
    at the end: projected rows, their gradients and the gradients of the features, in fp32.
    """
    return Cost(
        fp32=6 * hidden * rows * ranks * columns,
        projected=3 * hidden * width * (rows + columns),
        operators=CRITIC_OPERATORS,
        received=2 * 4 * hidden * columns * (ranks - 1) + summed(4, ranks),
        mib=4 * (2 * hidden * (rows + ranks * columns) + width * (rows + columns)) / MIB,
    )


def anchors(length: int, cl: float = 0.5, ch: float = 0.9) -> int:
    """Of a sentence."""
    return math.ceil(length * ch) - math.ceil(length * cl)


def path(batch: int, length: int, width: int, negatives: Negatives, ranks: int = 1, size: int = 4) -> Cost:
    """The regularisers of one pass: gradient and rows read, the rows' gradient written, and the critic.

    A pair's global row is its sentence's: against the batch's or all pairs only ``batch`` rows are distinct; in chunks
    each pair meets a batch's worth of others. Both make batch x pairs scores. With ``"all"`` the bottleneck is over all
    ranks too: d + 1 sums and one more.
    """
    ranks = ranks if negatives == "all" else 1
    own = critic(batch, batch * anchors(length), width, ranks)
    around = Cost(
        bytes=3 * size * batch * length * width,
        operators=PATH_OPERATORS[negatives] - CRITIC_OPERATORS,
        received=summed(4 * (width + 1), ranks) + summed(4, ranks),
        mib=size * batch * length * width / MIB,
    )
    return around + own


def encoder(layers: int, width: int, batch: int, length: int, units: int) -> Cost:
    """``units`` forwards: twelve d x d weights a layer and token, and attention's two products."""
    return Cost(products=units * layers * batch * length * (12 * width**2 + 2 * length * width))


def exchanged(ranks: int) -> float:
    """Bytes received where every host tells the others two numbers."""
    return 16 * (ranks - 1)


def step(
    layers: int,
    width: int,
    batch: int,
    length: int,
    *,
    passes: int = 3,
    accumulation: int = 1,
    negatives: Negatives = "chunk",
    ranks: int = 1,
    parameters: float = 0.0,
    buffers: float = 0.0,
    size: int = 4,
    engine: Engine = "ddp",
) -> Cost:
    """InfoBERT's optimisation step: four units and the regularisers in each pass, and what ranks send.

    Before each micro-batch hosts exchange two numbers where a term is over all ranks. DistributedDataParallel sums the
    gradients once a step and sends its ``buffers`` bytes from one rank to all, of which the average rank receives
    R - 1 of R parts. DeepSpeed's ZeRO-2 sums them in every pass of every micro-batch, whole, though a rank keeps an
    R-th, and gathers the new weights; one number more tells whether the norm is finite, and one is the norm.
    """
    regularisers = path(batch, length, width, negatives, ranks, size).times(passes)
    counts = Cost(received=exchanged(ranks) if negatives == "all" else 0)
    micro = encoder(layers, width, batch, length, 4 * passes) + regularisers + counts
    once = summed(4 * parameters, ranks)
    if engine == "ddp":
        sent = once + (ranks - 1) / ranks * buffers
    else:
        sent = once * passes * accumulation + once / 2 + 2 * summed(4, ranks)
    return micro.times(accumulation) + Cost(received=sent)
