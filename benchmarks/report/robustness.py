"""The runs of ``robustness.sh`` as the tables of docs/robustness.md: ``python benchmarks/report/robustness.py [RUNS]``.

RUNS is the folder that they were made in; without it the committed results are drawn as they are. A deviation is that
of a sample (n - 1), over seeds.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infobert_fast.aside import write_text
from infobert_fast.benchmarks.report.reading import RESULTS
from infobert_fast.cli.files import write_json

CONTENT = RESULTS / "cpu" / "robustness.json"
PAGE = RESULTS.parents[1] / "docs" / "robustness.md"
# As the page names them, in its order.
NAMES = {"vanilla": "standard", "freelb": "FreeLB", "infobert": "InfoBERT", "smart": "SMART", "r3f": "R3F"}
Table = tuple[list[str], list[list[str]]]  # header, lines
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collect(runs: Path) -> dict[str, Any]:
    """``nli`` and ``attack_any``, ``attack_similar``: objective, seed, set; ``qa``: objective, set."""
    content: dict[str, Any] = {"nli": {}, "attack_any": {}, "attack_similar": {}, "qa": {}}
    for path in sorted(runs.glob("nli/*.json")):
        objective, seed = path.stem.split(".")
        content["nli"].setdefault(objective, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(runs.glob("attack/*/report.json")):
        objective, seed, limit = path.parent.name.split(".")
        content[f"attack_{limit}"].setdefault(objective, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(runs.glob("qa/*.json")):
        content["qa"][path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return content


def over_seeds(runs: Mapping[str, Any], value: Callable[[Any], float], scale: float = 100) -> str:
    """Mean ± deviation of a value of each seed's run."""
    values = [scale * value(run) for run in runs.values()]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def nli(content: Mapping[str, Any]) -> Table:
    """Accuracy % on each set."""
    return _by_set(content["nli"])


def nli_beside_standard(content: Mapping[str, Any]) -> Table:
    """Accuracy % minus that of standard training with the same seed, order and first weights."""
    runs = content["nli"]
    differences = {
        objective: {
            seed: {
                name: result | {"accuracy": result["accuracy"] - runs["vanilla"][seed][name]["accuracy"]}
                for name, result in run.items()
            }
            for seed, run in seeds.items()
        }
        for objective, seeds in runs.items()
        if objective != "vanilla"
    }
    return _by_set(differences)


def _by_set(runs: Mapping[str, Any]) -> Table:
    objectives = [name for name in NAMES if name in runs]
    sets = next(iter(runs[objectives[0]].values()))
    lines = []
    for name, result in sets.items():
        cells = [over_seeds(runs[objective], lambda run: run[name]["accuracy"]) for objective in objectives]  # noqa: B023
        lines.append([name, f"{result['examples']:,}", *cells])
    return ["set", "examples", *(NAMES[name] for name in objectives)], lines


def attack(runs: Mapping[str, Any]) -> Table:
    """Of both target sets: accuracy % before and under attack, queries an attacked example, words changed %."""
    header, lines = ["objective"], []
    for name in ("SNLI", "MNLI"):
        header += [f"{name} clean", "under attack", "queries", "words changed %"]
    for objective in (name for name in NAMES if name in runs):
        cells = [NAMES[objective]]
        for name in ("snli", "mnli"):
            for what, scale in (("clean", 100), ("under_attack", 100), ("queries", 1), ("changed", 100)):
                cells.append(over_seeds(runs[objective], lambda run: run[name][what], scale))  # noqa: B023
        lines.append(cells)
    return header, lines


def qa(content: Mapping[str, Any]) -> Table:
    """Exact match / F1 with half of F1's 95 % interval."""
    runs = content["qa"]
    objectives = [name for name in NAMES if name in runs]

    def cell(result: Mapping[str, Any]) -> str:
        half = 50 * (result["high"] - result["low"])
        return f"{100 * result['exact_match']:.1f} / {100 * result['f1']:.1f} ± {half:.1f}"

    sets = runs[objectives[0]]
    lines = [[name, f"{sets[name]['examples']:,}", *(cell(runs[o][name]) for o in objectives)] for name in sets]
    return ["set", "questions", *(NAMES[name] for name in objectives)], lines


TABLES: Mapping[str, Callable[[Mapping[str, Any]], Table]] = {
    "nli": nli,
    "nli_beside_standard": nli_beside_standard,
    "attack_any": lambda content: attack(content["attack_any"]),
    "attack_similar": lambda content: attack(content["attack_similar"]),
    "qa": qa,
}


def render(page: str, content: Mapping[str, Any]) -> str:
    """The page with its marked tables written anew."""

    def fill(match: re.Match[str]) -> str:
        header, lines = TABLES[match[2]](content)
        rows = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
        return match[1] + "".join(f"| {' | '.join(cells)} |\n" for cells in rows) + match[3]

    return MARKED.sub(fill, page)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="?", type=Path, help="the folder that robustness.sh filled")
    given = parser.parse_args(arguments)
    content = json.loads(CONTENT.read_text(encoding="utf-8"))
    if given.runs is not None:
        content |= collect(given.runs)
        write_json(CONTENT, content)
    write_text(PAGE, render(PAGE.read_text(encoding="utf-8"), content))


if __name__ == "__main__":
    main()
