"""How cost and memory grow with pairs, batch, length and ranks: a model from counts, held to what was measured.

Operations, bytes and what ranks send each other are counted; the machine's ceilings turn them into seconds, with one
efficiency for each family of kernels, fitted at ONE measured size. ``python benchmarks/growth.py FOLDER``, a device's
results, prints what the model says of all other measured sizes, with its error, and then far beyond them. Without a
folder the ceilings are published peaks, given as arguments, and every efficiency is 1: what kernels reach is less.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reading import Row, read, select

HIDDEN = 300
ANCHORED = 52 / 128  # anchors a token: ranks in the window (0.5, 0.9) of 128
MIB = 2**20

Negatives = Literal["chunk", "batch", "all"]


class Cost(NamedTuple):
    """What one rank does: fp32 instructions, products of the encoder, bytes of its memory, bytes received, MiB held."""

    fp32: float = 0.0
    products: float = 0.0
    bytes: float = 0.0
    received: float = 0.0
    mib: float = 0.0

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, number: float) -> Cost:
        return Cost(*(number * value for value in self))


def critic(rows: float, columns: float, width: int, ranks: int = 1, hidden: int = HIDDEN) -> Cost:
    """InfoNCE forward + backward on one rank: its ``rows`` sentences against ``columns`` pairs of each of the ranks.

    Six instructions a pair and hidden unit, six for each weight and row of the projections. From the other ranks come
    their projected pairs, and their shares of the gradient of its own. Held at the end: projected rows, their gradients
    and the gradients of the features, in fp32.
    """
    mib = 4 * (2 * hidden * (rows + ranks * columns) + width * (rows + columns)) / MIB
    received = 2 * 4 * hidden * columns * (ranks - 1)
    return Cost(
        fp32=6 * hidden * rows * ranks * columns + 3 * hidden * width * (rows + columns), received=received, mib=mib
    )


def path(batch: int, length: int, width: int, negatives: Negatives, ranks: int = 1, size: int = 4) -> Cost:
    """The regularisers of one pass: gradient and rows read, the rows' gradient written, and the critic.

    A pair's global row is its sentence's: against the batch's or all pairs only ``batch`` rows are distinct; in chunks
    each pair meets a batch's worth of others. Both make batch x pairs scores.
    """
    pairs = ANCHORED * batch * length
    around = Cost(bytes=3 * size * batch * length * width, mib=size * batch * length * width / MIB)
    return around + critic(batch, pairs, width, ranks if negatives == "all" else 1)


def encoder(layers: int, width: int, batch: int, length: int, units: int) -> Cost:
    """``units`` forwards: twelve d x d weights a layer and token, and attention's two products."""
    return Cost(products=units * layers * batch * length * (12 * width**2 + 2 * length * width))


def step(
    layers: int,
    width: int,
    batch: int,
    length: int,
    *,
    passes: int = 3,
    negatives: Negatives = "chunk",
    ranks: int = 1,
    parameters: float = 0.0,
    size: int = 4,
) -> Cost:
    """InfoBERT's step: four units and the regularisers in each pass, and one reduction of the gradients, in a ring."""
    reduced = Cost(received=2 * (ranks - 1) / ranks * 4 * parameters)
    regularisers = path(batch, length, width, negatives, ranks, size).times(passes)
    return encoder(layers, width, batch, length, 4 * passes) + regularisers + reduced


@dataclass(frozen=True)
class Machine:
    """Ceilings, and the share of each that a family of kernels reaches; ``link`` in bytes a second and rank."""

    fp32: float
    products: float
    copy: float
    link: float
    efficiency: dict[str, float] = field(default_factory=lambda: {"critic": 1.0, "encoder": 1.0, "around": 1.0})
    source: str = "published peaks, every efficiency 1"
    workspace: float = 0.0  # MiB of InfoNCE that do not grow

    def seconds(self, cost: Cost) -> float:
        """Families follow each other, and nothing is sent while something is computed."""
        return (
            cost.fp32 / (self.efficiency["critic"] * self.fp32)
            + cost.products / (self.efficiency["encoder"] * self.products)
            + cost.bytes / (self.efficiency["around"] * self.copy)
            + cost.received / self.link
        )


# NVIDIA's data sheet of the H100 SXM: 67 Tflop/s fp32, 989 Tflop/s bf16 without sparsity, 3.35 TB/s; a 400 Gb/s port.
H100 = Machine(fp32=33.5e12, products=494.5e12, copy=3.35e12, link=50e9)


class Checked(NamedTuple):
    """A measured size and what the model says of it; ``fitted`` where the model's one number was taken from it."""

    what: str
    unit: Literal["ms", "MiB"]
    measured: float
    predicted: float
    fitted: bool

    @property
    def error(self) -> float:
        """Infinite where a call that reuses pages added no memory that could be seen."""
        return self.predicted / self.measured - 1 if self.measured else float("inf")


def _pairs(rows: Sequence[Row]) -> list[Row]:
    found = select(rows, "info_nce", "all_pairs", implementation="infobert-fast")
    return sorted(found, key=lambda row: row["pairs"])


def fit(content: dict[str, Any], link: float) -> tuple[Machine, list[Checked]]:
    """Efficiencies from one size of each family, and every measured size beside its prediction.

    Raises:
        ValueError: where the results lack a family.
    """
    rows, ceilings = content["rows"], content["ceilings"]
    gpu = "capability" in content["machine"]
    machine = Machine(
        ceilings["fp32_fma_per_s"],
        ceilings["half_fma_per_s" if gpu else "fp32_fma_per_s"],
        ceilings["copy_bytes_per_s"],
        link,
        source="ceilings measured in the same run, one efficiency a family",
    )
    sweep, steps = _pairs(rows), {row["implementation"]: row for row in select(rows, "step", "step")}
    around = select(rows, "regularizers", "regularizers", part="club")
    around = [row for row in around if row["implementation"] == ("infobert-fast" if gpu else "eager")]
    if len(sweep) < 2 or "floor" not in steps or not around:
        raise ValueError("the results lack info_nce, step or regularizers: run `infobert bench` for all three")
    middle = sweep[len(sweep) // 2]
    size = 2 if gpu else 4
    batch, length, width = around[-1]["shape"]
    floor = steps["floor"]
    shape = [int(floor[name]) for name in ("layers", "width", "batch", "length")]
    for family, cost, row in (
        ("critic", critic(middle["pairs"], middle["pairs"], 768), middle),
        ("around", Cost(bytes=3 * size * batch * length * width), around[-1]),
        ("encoder", encoder(*shape, 4 * floor["passes"]), floor),
    ):
        machine.efficiency[family] = machine.seconds(cost) / row["median"]
    machine = replace(machine, workspace=middle["extra_mib"] - critic(middle["pairs"], middle["pairs"], 768).mib)
    checked = []

    def hold(what: str, row: Row, cost: Cost, fitted: bool = False) -> None:
        checked.append(Checked(what, "ms", 1e3 * row["median"], 1e3 * machine.seconds(cost), fitted))

    for row in sweep:
        hold(f"InfoNCE, {row['pairs']:,} pairs", row, critic(row["pairs"], row["pairs"], 768), row is middle)
    for row in sweep:
        mib = machine.workspace + critic(row["pairs"], row["pairs"], 768).mib
        checked.append(Checked(f"InfoNCE, {row['pairs']:,} pairs", "MiB", row["extra_mib"], mib, row is middle))
    for row in select(rows, "path", "path", implementation="infobert-fast"):
        what = f"regularisers, {' x '.join(map(str, row['shape']))}, {row['negatives']}"
        hold(what, row, path(*row["shape"], row["negatives"], size=size))
    passes = int(floor["passes"])
    for name, cost in (
        ("floor", encoder(*shape, 4 * passes)),
        ("standard", encoder(*shape, 3)),
        ("FreeLB", encoder(*shape, 3 * passes)),
        ("infobert-fast", step(*shape, passes=passes, size=size)),
    ):
        hold(f"step, {name}", steps[name], cost, name == "floor")
    return machine, checked


def beyond(content: dict[str, Any] | None) -> Machine:
    """The GPU that far sizes are computed for: the one measured, or an H100 at its published peaks."""
    return H100 if content is None or "capability" not in content["machine"] else fit(content, H100.link)[0]


PAIRS, RANKS = (10**4, 10**5, 10**6, 10**7, 10**8), (1, 8, 64, 1024)


class Estimate(NamedTuple):
    """InfoNCE forward + backward over all pairs of all ranks, each pair with its own global row."""

    pairs: int
    ranks: int
    seconds: float
    sending: float  # the share of the time in which ranks wait for each other's rows
    mib: float


def estimates(machine: Machine, width: int = 768) -> Iterator[Estimate]:
    for pairs in PAIRS:
        for ranks in RANKS:
            cost = critic(pairs / ranks, pairs / ranks, width, ranks)
            seconds = machine.seconds(cost)
            yield Estimate(pairs, ranks, seconds, cost.received / machine.link / seconds, machine.workspace + cost.mib)


class Step(NamedTuple):
    """A step whose batch is 32 sentences a rank: seconds, shares of the regularisers and of sending."""

    negatives: Negatives
    ranks: int
    seconds: float
    regularisers: float
    sending: float


ROBERTA_LARGE = {"layers": 24, "width": 1024, "batch": 32, "length": 128}


def steps(machine: Machine) -> Iterator[Step]:
    for negatives in ("chunk", "batch", "all"):
        for ranks in RANKS:
            cost = step(**ROBERTA_LARGE, negatives=negatives, ranks=ranks, parameters=355e6, size=2)
            own = path(32, 128, 1024, negatives, ranks, 2).times(3)
            whole = machine.seconds(cost)
            regularisers = machine.seconds(own._replace(received=0.0)) / whole
            yield Step(negatives, ranks, whole, regularisers, cost.received / machine.link / whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="folder of a device's results; its ceilings are taken")
    parser.add_argument("--fp32", type=float, default=H100.fp32, help="fp32 instructions a second")
    parser.add_argument("--products", type=float, default=H100.products, help="bf16 multiply-adds a second")
    parser.add_argument("--copy", type=float, default=H100.copy, help="bytes a second of memory")
    parser.add_argument("--link", type=float, default=H100.link, help="bytes a second that a rank receives")
    given = parser.parse_args()
    machine = Machine(given.fp32, given.products, given.copy, given.link)
    if given.results:
        content = read(given.results)
        if content is None:
            parser.error(f"{given.results} holds no results: infobert bench --output {given.results}/bench.json")
        machine, checked = fit(content, given.link)
        print("efficiencies:", ", ".join(f"{name} {value:.3f}" for name, value in machine.efficiency.items()))
        for row in checked:
            error = "fitted" if row.fitted else f"{100 * row.error:+.0f} %"
            print(f"{row.what:44} {row.unit:3} measured {row.measured:12,.3f}, model {row.predicted:12,.3f}  {error}")
    print(f"\nA model, no measurement ({machine.source}; link {machine.link / 1e9:g} GB/s)")
    for estimate in estimates(machine):
        print(
            f"{estimate.pairs:13,} pairs on {estimate.ranks:5,} ranks: {estimate.seconds:12.4g} s, "
            f"{100 * estimate.sending:5.1f} % sending, {estimate.mib:12,.1f} MiB a rank"
        )
    print("\nRoBERTa-large, 32 x 128 tokens a rank, K = 3, one step without the optimiser")
    for row in steps(machine):
        shares = f"regularisers {100 * row.regularisers:6.2f} %, sending {100 * row.sending:5.1f} %"
        print(f"{row.negatives:6} {row.ranks:5,} ranks: {row.seconds:9.4f} s, {shares}")


if __name__ == "__main__":
    main()
