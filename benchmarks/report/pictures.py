"""The pictures of docs/benchmarks.md, drawn from results. Deterministic: equal results, equal bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from infobert_fast.benchmarks.model import growth
from infobert_fast.benchmarks.report.reading import Row, select

INK, QUIET, RULE, OURS = "#1d1f21", "#62676c", "#dfe1e3", "#0067a5"
COLOURS = {
    "literal": "#7d8388",
    "factorised": "#c04a00",
    "eager": "#c04a00",
    "compiled": "#8a5aa8",
    "infobert-fast": OURS,
    "infobert-fast compiled": "#4fa3d1",
}
STYLE = {
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "grid.color": RULE,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "svg.hashsalt": "infobert-fast",
}


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None, dpi=160)


def _axes(width: float, height: float, count: int, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def _plain(value: float, _: int) -> str:
    """1,000 and 0.01 instead of powers of ten; beyond a million powers again."""
    return f"{value:,.10g}" if value == 0 or 1e-3 <= value < 1e6 else f"$10^{{{round(math.log10(value))}}}$"


def _log_log(axes: Axes, title: str, below: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=below)
    axes.set_title(title, color=INK, weight="bold")
    axes.grid(True, which="major", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _end_labels(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Lines are named at their ends, in their colour, moved apart where two would overlap."""
    axes.figure.canvas.draw()
    placed: list[float] = []
    scale = axes.transData
    for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
        height = float(scale.transform((x, y))[1])
        if placed:
            height = max(height, placed[-1] + 13)
        placed.append(height)
        shift = (height - float(scale.transform((x, y))[1])) * 72 / axes.figure.dpi
        axes.annotate(
            text, (x, y), (7, shift), textcoords="offset points", color=colour, va="center", fontsize=9, clip_on=False
        )


def draw_pairs(content: dict[str, Any], path: Path) -> None:
    """Time and memory of InfoNCE, forward + backward, over the number of pairs; the roofline where time has one."""
    rows = select(content["rows"], "info_nce", "all_pairs")
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(11, 4.4, 2)
        sizes = sorted({row["pairs"] for row in rows})
        for axis, key, scale, title in (
            (axes[0], "median", 1e3, "Time, ms"),
            (axes[1], "extra_mib", 1.0, "Memory that a call adds, MiB"),
        ):
            _log_log(axis, title, "pairs, each with all others as negatives")
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axis.xaxis.set_minor_formatter(NullFormatter())
            ends = []
            for name in dict.fromkeys(row["implementation"] for row in rows):
                own = [row for row in rows if row["implementation"] == name and row[key] > 0]  # a call may reuse pages
                if not (line := sorted((row["pairs"], scale * row[key]) for row in own)):
                    continue
                colour = COLOURS.get(name, INK)
                axis.plot(*zip(*line, strict=True), marker="o", markersize=4.5, linewidth=2.2, color=colour)
                ends.append((*line[-1], name, colour))
            if key == "median":
                least = {row["pairs"]: scale * row["median"] * row["roofline"] for row in rows if "roofline" in row}
                line = sorted(least.items())
                axis.plot(*zip(*line, strict=True), linestyle=(0, (4, 3)), linewidth=1.4, color=INK)
                ends.append((*line[-1], "roofline", INK))
            axis.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.1)
            _end_labels(axis, ends)
        _save(figure, path)


STEPS = {
    "standard": "standard, one pass",
    "FreeLB": "FreeLB",
    "floor": "InfoBERT's passes,\nno regularisers",
    "infobert-fast": "InfoBERT",
    "literal": "InfoBERT, literal",
}
PARTS = {
    "forward": "#5b86a8",
    "input gradient": "#88abc6",
    "backward": "#b9cfde",
    "bottleneck": "#c04a00",
    "anchored features": "#e08a3c",
    "ascent": "#f0c08a",
}


def draw_step(content: dict[str, Any], path: Path) -> None:
    """A step's time in each way of training, and one pass of InfoBERT's in its parts."""
    steps = {row["implementation"]: row for row in select(content["rows"], "step", "step")}
    parts = {row["part"]: row for row in select(content["rows"], "step", "parts")}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4.9), layout="constrained", facecolor="white")
        above, below = figure.subplots(2, 1, height_ratios=[3, 1])
        names = [name for name in STEPS if name in steps]
        most = max(steps[name]["median"] for name in names)
        for place, name in enumerate(names):
            seconds, low, high = (steps[name][key] for key in ("median", "q1", "q3"))
            ours = name == "infobert-fast"
            above.barh(place, 1e3 * seconds, 0.62, color=OURS if ours else "#c3c8cc")
            above.plot([1e3 * low, 1e3 * high], [place, place], color=INK, linewidth=1)
            ratio = f"   {seconds / steps['floor']['median']:.2f} x floor" if "floor" in steps else ""
            text = f"  {1e3 * seconds:,.0f} ms{ratio}"
            above.text(
                1e3 * max(seconds, high), place, text, va="center", color=INK, weight="bold" if ours else "normal"
            )
        above.set_yticks(range(len(names)), [STEPS[name] for name in names], color=INK)
        above.invert_yaxis()
        above.set_xlim(0, 1e3 * most * 1.4)
        size = next(iter(steps.values()))
        above.set_title(
            f"One step, ms: {size['layers']} layers of {size['width']}, {size['batch']} x {size['length']} tokens, "
            f"K = {size['passes']}",
            weight="bold",
            color=INK,
        )
        _stacked(below, parts)
        for axis in (above, below):
            axis.spines["left"].set_visible(False)
            axis.tick_params(length=0)
            axis.xaxis.set_major_formatter(FuncFormatter(_plain))
        _save(figure, path)


def _stacked(axis: Axes, parts: dict[str, Row]) -> None:
    """One bar, its parts one after the other; names, times and shares in the legend, since some parts are hairlines."""
    left, whole = 0.0, sum(row["median"] for row in parts.values())
    for name, colour in PARTS.items():
        seconds = parts[name]["median"]
        label = f"{name} {1e3 * seconds:,.1f} ms, {100 * seconds / whole:.1f} %"
        axis.barh(0, 1e3 * seconds, 0.6, left=left, color=colour, label=label)
        left += 1e3 * seconds
    axis.set_yticks([0], ["one pass"], color=INK)
    axis.set_xlim(0, left)
    axis.set_title("Where a pass goes, each part timed by itself", weight="bold", color=INK)
    axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False, fontsize=9)


def draw_growth(content: dict[str, Any], path: Path) -> None:
    """The model beside what was measured on this device; then the same model at a GPU's published peaks."""
    machine, _ = growth.fit(content, growth.H100.link)
    rows = select(content["rows"], "info_nce", "all_pairs", implementation="infobert-fast")
    measured = sorted((row["pairs"], row["median"]) for row in rows)
    middle = measured[len(measured) // 2]
    with matplotlib.rc_context(STYLE):
        figure, (here, beyond) = _axes(11, 4.4, 2)
        _log_log(here, "This device: InfoNCE, s", "pairs")
        pairs = [measured[0][0] * 2 ** (i / 4) for i in range(4 * (len(measured) + 2))]
        model = [machine.seconds(growth.critic(n, n, 768)) for n in pairs]
        here.plot(pairs, model, color=QUIET, linewidth=1.6, linestyle=(0, (4, 3)), label="model")
        here.plot(*zip(*measured, strict=True), "o", color=OURS, markersize=6, label="measured")
        here.plot(
            *middle, "o", color="white", markeredgecolor=OURS, markeredgewidth=2, markersize=8, label="fitted here"
        )
        here.xaxis.set_major_formatter(FuncFormatter(_plain))
        here.legend(frameon=False, loc="upper left")
        gpu = growth.beyond(content)
        whose = "H100 at published peaks" if gpu is growth.H100 else "Such GPUs"
        _log_log(beyond, f"{whose}: model, not measured, s", "pairs over all GPUs, all as negatives")
        found = list(growth.estimates(gpu))
        ends = []
        for ranks, colour in zip(growth.RANKS, ("#b9cfde", "#88abc6", "#4a7fa8", "#0b4a75"), strict=True):
            line = [(row.pairs, row.seconds) for row in found if row.ranks == ranks]
            beyond.plot(*zip(*line, strict=True), color=colour, linewidth=2.2, linestyle=(0, (4, 2)))
            ends.append((*line[-1], f"{ranks:,} GPU{'s' * (ranks > 1)}", colour))
        beyond.xaxis.set_major_formatter(FuncFormatter(_plain))
        _end_labels(beyond, ends)
        _save(figure, path)
