"""Every figure in README.md and docs/ comes from a result file, and agrees with it."""

import json
import re
from pathlib import Path

import pytest

RESULTS = Path("benchmarks/results/cpu")


def rows(document, heading):
    """The cells of the table that follows a header cell, row by row."""
    lines = Path(document).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("*") for cell in line.strip("|").split("|")])
    return table


def test_the_estimators_table():
    from infobert_fast.benchmarks.report.reading import read, select

    content = read(RESULTS)
    rows_of = select(content["rows"], "info_nce", "all_pairs")
    measured = {(row["pairs"], row["implementation"]): row for row in rows_of}
    shown = rows("README.md", "pairs")
    assert len(shown) == len({pairs for pairs, _ in measured})
    for pairs, *cells in shown:
        names = ("literal", "factorised", "infobert-fast", "infobert-fast compiled")
        for name, time, memory in zip(names, cells[:4], cells[4:], strict=True):
            row = measured.get((int(pairs.replace(",", "")), name))
            assert time == ("-" if row is None else f"{1000 * row['median']:,.0f}")
            assert memory == ("-" if row is None else f"{row['extra_mib']:,.0f}")
    assert content["machine"]["device"].split(",")[0] in Path("README.md").read_text()


def test_the_demos_table():
    content = json.loads((RESULTS / "demo.json").read_text())
    for name, *cells in rows("docs/demo.md", "method"):
        row = content[name]
        assert cells[:4] == [
            f"{100 * row['clean']:.1f}",
            f"{100 * row['adversarial']:.1f}",
            f"{row['upper']:.1f}",
            f"{row['lower']:.2f}",
        ]
        assert cells[4] == f"{row['seconds_per_step']:.3f}"


def test_the_robustness_tables():
    from infobert_fast.benchmarks.report import robustness

    content = json.loads(robustness.CONTENT.read_text())
    page = robustness.PAGE.read_text()
    assert robustness.render(page, content) == page
    for corpus, ours, _ in rows("docs/robustness.md", "check"):
        assert ours == f"{100 * content['full'][corpus]['accuracy']:.1f}"


def test_a_mean_and_a_deviation_over_seeds():
    from infobert_fast.benchmarks.report import robustness

    assert robustness.over_seeds({"1": 0.5, "2": 0.6, "3": 0.7}, lambda value: value) == "60.0 ± 10.0"
    assert robustness.over_seeds({"1": 0.5}, lambda value: value) == "50.0"


def test_the_padding_table():
    content = json.loads((RESULTS / "padding.json").read_text())
    text = Path("docs/throughput.md").read_text()
    assert f"{content['pairs']:,} pairs" in text
    assert f"({content['tokens'] / content['pairs']:.1f} tokens on average)" in text
    shown = rows("docs/throughput.md", "batches")
    assert len(shown) == len(content["rows"])
    for cells, row in zip(shown, content["rows"], strict=True):
        sizes = ", ".join(f"{n:,}" for n in row["sentences"])
        assert cells == [row["batches"], f"{row['tokens']:.3f}", f"{row['flops']:.3f}", f"{row['count']:,}", sizes]


@pytest.mark.parametrize("document", ["README.md", *map(str, Path("docs").glob("*.md"))])
def test_nothing_is_left_to_be_filled_in(document):
    text = Path(document).read_text(encoding="utf-8")
    assert not re.findall(r"^[A-Z_]{6,}$", text, flags=re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (Path(document).parent / target).exists(), target
