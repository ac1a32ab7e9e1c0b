"""Pictures and tables of a page from the result files: ``python benchmarks/report/pages.py [PAGE ...]``.

Between ``<!-- table: DEVICE GROUP TEST -->`` and ``<!-- end -->`` a page holds the table of one benchmark function,
between ``<!-- picture: DEVICE NAME -->`` and ``<!-- end -->`` a picture; DEVICE is a folder of ``benchmarks/results``.
Pictures are written beside the page, in a folder of its name. The same results give the same bytes.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infobert_fast.aside import write_text
from infobert_fast.benchmarks.model import growth
from infobert_fast.benchmarks.report.pictures import draw_growth, draw_pairs, draw_step
from infobert_fast.benchmarks.report.reading import RESULTS, Row, read, read_traffic, select
from infobert_fast.cli.bench import MEASURED

DEFAULT_PAGE = RESULTS.parents[1] / "docs" / "benchmarks.md"
MARKED = re.compile(r"(<!-- (table|picture): ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURES: Mapping[str, Callable[[dict[str, Any], Path], None]] = {
    "pairs": draw_pairs,
    "step": draw_step,
    "growth": draw_growth,
}


def render(text: str, results: Path, pictures: str = "benchmarks") -> str:
    """The page with every marked part written anew; ``pictures`` is the folder of its pictures, seen from the page.

    Raises:
        ValueError: for a marker that names no table or picture.
    """

    def fill(match: re.Match[str]) -> str:
        opening, kind, named, closing = match.groups()
        return f"{opening}{picture(named, results, pictures) if kind == 'picture' else table(named, results)}{closing}"

    return MARKED.sub(fill, text)


@functools.cache
def _content(folder: Path) -> dict[str, Any] | None:
    return read(folder)


def picture(named: str, results: Path, pictures: str) -> str:
    device, _, name = named.partition(" ")
    if name not in PICTURES:
        raise ValueError(f"<!-- picture: {named} --> names none of {', '.join(PICTURES)}")
    if _content(results / device) is None:
        return ""
    return f"![{CAPTIONS[name]}]({pictures}/{device}-{name}.svg)\n"


CAPTIONS = {
    "pairs": "Time and memory of InfoNCE over the number of pairs",
    "step": "A training step in its parts, beside other steps",
    "growth": "The growth model beside what was measured, and beyond",
}


def table(named: str, results: Path) -> str:
    device, *rest = named.split()
    content = _content(results / device)
    if rest[:1] == ["traffic"]:
        return _traffic(results / device, *rest[1:])
    if rest in (["model", "estimator"], ["model", "step"]):
        return (_estimates if rest[1] == "estimator" else _steps)(growth.beyond(content))
    if content is None:
        return f"*Not measured yet: `infobert bench --output benchmarks/results/{device}/bench.json` does it.*\n"
    if rest == ["machine"]:
        return _machine(content)
    if rest == ["readme"]:
        return _readme(content)
    if rest == ["growth"]:
        return _checked(content)
    if len(rest) != 2:
        raise ValueError(
            f"<!-- table: {named} --> names no table: DEVICE GROUP TEST, DEVICE machine, DEVICE traffic KIND ..."
        )
    rows = select(content["rows"], *rest)
    if not rows:
        raise ValueError(f"<!-- table: {named} --> names no benchmark of {results / device}")
    return _pivot(rows) if _facts(rows) and "implementation" in rows[0] else _long(rows)


def _lines(header: list[str], rows: list[list[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def _facts(rows: list[Row]) -> list[str]:
    """What rows differ in, but for the implementation."""
    names = [name for name in rows[0] if name not in (*MEASURED, "group", "name", "implementation")]
    return [name for name in names if any(row.get(name) != rows[0][name] for row in rows)]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value).removeprefix("torch.")


def _number(value: float) -> str:
    """Three figures that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _rough(value: float) -> str:
    """Two figures, for what is a model."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _pivot(rows: list[Row]) -> str:
    """A line for each size, a column for each implementation: ms, and MiB in brackets; our share of the roofline."""
    facts = _facts(rows)
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    sizes = list(dict.fromkeys(tuple(_shown(row.get(fact)) for fact in facts) for row in rows))
    ours = any("roofline" in row for row in rows) and "infobert-fast" in names
    lines = []
    for size in sizes:
        found = {row["implementation"]: row for row in rows if tuple(_shown(row.get(fact)) for fact in facts) == size}
        cells = [
            f"{_number(1e3 * r['median'])} ({_number(r['extra_mib'])})" if (r := found.get(n)) else "" for n in names
        ]
        share = f"{100 * found['infobert-fast'].get('roofline', 0):.0f}" if "infobert-fast" in found else ""
        lines.append([*size, *cells, *([share] if ours else [])])
    return _lines([*facts, *names, *(["% of roofline"] if ours else [])], lines, len(facts))


def _long(rows: list[Row]) -> str:
    """A line for each row."""
    facts = (["implementation"] if "implementation" in rows[0] else []) + _facts(rows)
    roofline = any("roofline" in row for row in rows)
    counted = next((what for what in ("examples", "texts") if what in rows[0]), None)
    lines = []
    for row in rows:
        cells = [_shown(row.get(fact, "")) for fact in facts]
        spread = f"{100 * (row['q3'] - row['q1']) / row['median']:.0f}"
        cells += [_number(1e3 * row["median"]), spread, _number(row["extra_mib"])]
        if roofline:
            cells.append(f"{100 * row['roofline']:.0f}" if "roofline" in row else "")
        if counted:  # the first row is the baseline
            cells += [f"{row[counted] / row['median']:,.0f}", f"{rows[0]['median'] / row['median']:.2f}"]
        lines.append(cells)
    more = (["% of roofline"] if roofline else []) + ([f"{counted}/s", "x first row's speed"] if counted else [])
    return _lines([*facts, "ms", "spread %", "MiB", *more], lines, 1)


def _machine(content: dict[str, Any]) -> str:
    machine, ceilings = content["machine"], content["ceilings"]
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "date"))
    copy, fp32, half = (ceilings[f"{name}_per_s"] for name in ("copy_bytes", "fp32_fma", "half_fma"))
    return (
        f"{machine['device']}; {versions}; {machine['date']}. Ceilings measured in the same run: copy "
        f"{copy / 1e9:,.1f} GB/s, fp32 {2e-12 * fp32:,.2f} and bf16 {2e-12 * half:,.2f} Tflop/s.\n"
    )


def _readme(content: dict[str, Any]) -> str:
    """The estimator's rows as README.md shows them."""
    found = {(row["pairs"], row["implementation"]): row for row in select(content["rows"], "info_nce", "all_pairs")}
    # torch.compile of the factorised form is measured at few sizes; docs/benchmarks.md has it
    names = [name for name in dict.fromkeys(name for _, name in found) if name != "compiled"]
    lines = []
    for pairs in sorted({pairs for pairs, _ in found}):
        cells = [f"{pairs:,}"]
        for scale, key in ((1e3, "median"), (1.0, "extra_mib")):
            values = [found[pairs, name][key] * scale if (pairs, name) in found else None for name in names]
            shown = ["-" if value is None else f"{value:,.0f}" for value in values]
            cells += [f"**{cell}**" if "infobert" in name else cell for name, cell in zip(names, shown, strict=True)]
        lines.append(cells)
    return _lines(["pairs", *(f"{name}, {unit}" for unit in ("ms", "MiB") for name in names)], lines, 0)


def _checked(content: dict[str, Any]) -> str:
    machine, checked = growth.fit(content, growth.H100.link)
    lines = [
        [
            f"{row.what}, {row.unit}",
            _number(row.measured),
            _number(row.predicted),
            "fitted" if row.fitted else f"{100 * row.error:+.0f} %" if row.measured else "-",
        ]
        for row in checked
    ]
    fitted = ", ".join(f"{name} {100 * value:.0f} %" for name, value in machine.efficiency.items())
    table = _lines(["size", "measured", "model", "error"], lines, 1)
    return f"{table}\nFitted: {fitted} of the ceiling; an operator {1e6 * machine.operator:.0f} µs.\n"


def _traffic(folder: Path, kind: str) -> str:
    """Bytes that a rank received, beside the model's, and the error; one rank, which receives nothing, is left out."""
    rows = [row for row in growth.held(read_traffic(folder)) if row.kind == kind and row.ranks > 1]
    if not rows:
        command = f"python benchmarks/model/traffic.py --output benchmarks/results/{folder.name}/ranks.json"
        return f"*Not counted yet: `{command}`.*\n"
    lines = [
        [
            row.what,
            f"{row.ranks}",
            f"{row.collectives}",
            f"{row.received:,.0f}",
            f"{row.predicted:,.0f}",
            f"{row.predicted - row.received:+,.0f}" if row.predicted != row.received else "0",
            f"{row.written:,}",
        ]
        for row in rows
    ]
    return _lines(["case", "ranks", "collectives", "received", "model", "error", "written"], lines, 1)


def _estimates(machine: growth.Machine) -> str:
    found = {(row.pairs, row.ranks): row for row in growth.estimates(machine)}
    lines = [
        [
            f"{pairs:,}",
            *(
                f"{_rough(found[pairs, ranks].seconds)} s, {_rough(found[pairs, ranks].mib / 1024)} GiB"
                for ranks in growth.RANKS
            ),
        ]
        for pairs in growth.PAIRS
    ]
    return _lines(["pairs", *(f"{n:,} GPU{'s' * (n > 1)}" for n in growth.RANKS)], lines, 0)


def _steps(machine: growth.Machine) -> str:
    lines = [
        [
            row.negatives,
            f"{row.ranks:,}",
            f"{1e3 * row.seconds:.1f}",
            f"{100 * row.regularisers:.2f}",
            f"{100 * row.sending:.0f}",
        ]
        for row in growth.steps(machine)
    ]
    return _lines(["negatives", "GPUs", "ms", "regularisers, %", "sending, %"], lines, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="*", default=[DEFAULT_PAGE], help="pages with markers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the devices' folders")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is not up to date")
    given = parser.parse_args()
    for page in given.page:
        text = page.read_text(encoding="utf-8")
        new = render(text, given.results, page.stem)
        if given.check:
            if new != text:
                sys.exit(f"{page} does not show the results: run python benchmarks/report/pages.py {page}")
            continue
        for kind, named in re.findall(r"<!-- (table|picture): ([^>]*?) -->", text):
            device, _, name = named.partition(" ")
            content = _content(given.results / device)
            if kind == "picture" and content is not None:
                PICTURES[name](content, page.parent / page.stem / f"{device}-{name}.svg")
        write_text(page, new)


if __name__ == "__main__":
    main()
