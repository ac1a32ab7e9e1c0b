"""How cost and memory grow with pairs, batch, length and ranks: a model from counts, held to what was measured.

Operations, bytes and what ranks send each other are counted; the machine's ceilings turn them into seconds, with one
efficiency for each family of kernels and one time an operator, each fitted at ONE measured size. ``python
benchmarks/model/growth.py FOLDER``, a device's results, prints what the model says of all other measured sizes, with
its error, its bytes beside those that traffic.py counted, and then sizes far beyond. Without a folder the ceilings are
published peaks, given as arguments, and every efficiency is 1: what kernels reach is less.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from infobert_fast.benchmarks.model.costs import CLUB_OPERATORS, Cost, Negatives, critic, encoder, exchanged, path, step
from infobert_fast.benchmarks.report.reading import Row, read, read_traffic, select

FAMILIES = ("pairs", "products", "around")


@dataclass(frozen=True)
class Machine:
    """Ceilings, and the share of each that a family of kernels reaches; ``link`` in bytes a second and rank."""

    fp32: float
    products: float
    copy: float
    link: float
    efficiency: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 1.0))
    operator: float = 0.0  # seconds to dispatch one
    source: str = "published peaks, every efficiency 1"
    workspace: float = 0.0  # MiB of InfoNCE that do not grow

    def ideal(self, cost: Cost) -> dict[str, float]:
        """Seconds of each family at its ceiling. The critic's products are the encoder's family, in fp32."""
        return {
            "pairs": cost.fp32 / self.fp32,
            "products": cost.products / self.products + cost.projected / self.fp32,
            "around": cost.bytes / self.copy,
        }

    def seconds(self, cost: Cost) -> float:
        """Families follow each other, and nothing is sent while something is computed."""
        families = sum(ideal / self.efficiency[name] for name, ideal in self.ideal(cost).items())
        return families + cost.operators * self.operator + cost.received / self.link


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
    """Efficiencies and the time of an operator from one size each, and every measured size beside its prediction.

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
    paths = select(rows, "path", "path", implementation="infobert-fast")
    if len(sweep) < 2 or "floor" not in steps or not around or not paths:
        raise ValueError("the results lack info_nce, step, path or regularizers: run `infobert bench` for all four")
    middle, smallest = sweep[len(sweep) // 2], min(paths, key=lambda row: math.prod(row["shape"]))
    size = 2 if gpu else 4
    batch, length, width = around[-1]["shape"]
    floor = steps["floor"]
    shape = [int(floor[name]) for name in ("layers", "width", "batch", "length")]
    fitted = (
        (encoder(*shape, 4 * floor["passes"]), floor),
        (critic(middle["pairs"], middle["pairs"], 768), middle),
        (Cost(bytes=3 * size * batch * length * width, operators=CLUB_OPERATORS), around[-1]),
        (path(*smallest["shape"], smallest["negatives"], size=size), smallest),
    )
    # A time is linear in what families and an operator cost: as many sizes as there are unknowns.
    counts = [[*machine.ideal(cost).values(), cost.operators] for cost, _ in fitted]
    *slower, operator = np.linalg.solve(counts, [row["median"] for _, row in fitted])
    machine = replace(
        machine,
        efficiency={name: 1 / float(factor) for name, factor in zip(FAMILIES, slower, strict=True)},
        operator=float(operator),
        workspace=middle["extra_mib"] - critic(middle["pairs"], middle["pairs"], 768).mib,
    )
    checked = []

    def hold(what: str, row: Row, cost: Cost, fitted: bool = False) -> None:
        checked.append(Checked(what, "ms", 1e3 * row["median"], 1e3 * machine.seconds(cost), fitted))

    for row in sweep:
        hold(f"InfoNCE, {row['pairs']:,} pairs", row, critic(row["pairs"], row["pairs"], 768), row is middle)
    for row in sweep:
        mib = machine.workspace + critic(row["pairs"], row["pairs"], 768).mib
        checked.append(Checked(f"InfoNCE, {row['pairs']:,} pairs", "MiB", row["extra_mib"], mib, row is middle))
    for row in paths:
        what = f"regularisers, {' x '.join(map(str, row['shape']))}, {row['negatives']}"
        hold(what, row, path(*row["shape"], row["negatives"], size=size), row is smallest)
    passes = int(floor["passes"])
    for name, cost in (
        ("floor", encoder(*shape, 4 * passes)),
        ("standard", encoder(*shape, 3)),
        ("FreeLB", encoder(*shape, 3 * passes)),
        ("infobert-fast", step(*shape, passes=passes, size=size)),
    ):
        hold(f"step, {name}", steps[name], cost, name == "floor")
    return machine, checked


class Sent(NamedTuple):
    """Bytes that a rank received in one case, by the ring and by the model; how many collectives it took part in, and
    what the busiest rank's sockets were given.
    """

    kind: str
    case: dict[str, Any]
    ranks: int
    collectives: int
    received: float
    predicted: float
    written: int

    @property
    def error(self) -> float:
        """Infinite where the model has bytes and nothing was received."""
        if self.predicted == self.received:
            return 0.0
        return self.predicted / self.received - 1 if self.received else float("inf")

    @property
    def what(self) -> str:
        """The case in words."""
        if self.kind == "estimator":
            return f"InfoNCE, {self.case['pairs']:,} pairs a rank"
        sentences = self.case["batch"]
        sentences = " and ".join(map(str, sentences)) if isinstance(sentences, list) else sentences
        shape = f"{sentences} x {self.case['length']} x {self.case['width']}"
        if self.kind == "regularisers":
            return shape
        case = self.case
        return f"{case['engine']}, {shape}, {case['negatives']}, K = {case['passes']} x {case['accumulation']}"


FACTS = ("pairs", "layers", "width", "vocabulary", "batch", "length", "passes", "accumulation", "negatives", "engine")


def held(traffic: Sequence[Row]) -> list[Sent]:
    """What traffic.py counted, its phases added up, each case beside the model."""
    found: dict[str, list[Row]] = {}
    for row in traffic:
        found.setdefault(str([row["kind"], row["ranks"], *(row.get(name) for name in FACTS)]), []).append(row)
    sent = []
    for phases in found.values():
        row = phases[0]
        case = {name: row[name] for name in FACTS if name in row}
        calls = sum(kind["calls"] for phase in phases for kind in phase["collectives"].values())
        received = sum(phase["received"] for phase in phases)
        written = max(sum(rank) for rank in zip(*(phase["written"] for phase in phases), strict=True))
        sent.append(Sent(row["kind"], case, row["ranks"], calls, received, _predicted(row), written))
    return sent


def _predicted(row: Row) -> float:
    if row["kind"] == "estimator":
        return critic(row["pairs"], row["pairs"], row["width"], row["ranks"]).received
    if row["kind"] == "regularisers":
        batch = max(row["batch"][: row["ranks"]]) if isinstance(row["batch"], list) else row["batch"]
        return exchanged(row["ranks"]) + path(batch, row["length"], row["width"], "all", row["ranks"]).received
    names = ("layers", "width", "batch", "length", "passes", "accumulation", "negatives", "ranks", "parameters")
    return step(**{name: row[name] for name in (*names, "buffers", "engine")}).received


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
        print(f"an operator: {1e6 * machine.operator:.1f} µs")
        for row in checked:
            error = "fitted" if row.fitted else f"{100 * row.error:+.0f} %"
            print(f"{row.what:44} {row.unit:3} measured {row.measured:12,.3f}, model {row.predicted:12,.3f}  {error}")
        for sent in held(read_traffic(given.results)):
            print(
                f"{sent.what:44} {sent.ranks} ranks received {sent.received:14,.0f} bytes, model "
                f"{sent.predicted:14,.0f}  {100 * sent.error:+.2f} %; written {sent.written:,}"
            )
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
