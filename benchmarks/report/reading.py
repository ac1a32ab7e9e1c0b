"""Result files of one device, put together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"

Row = dict[str, Any]


def read(folder: Path) -> dict[str, Any] | None:
    """Machine, ceilings and rows of the folder's result files, which `infobert bench --output` wrote; None where there
    is none. Files of other tools are left alone.

    Raises:
        ValueError: where two files hold the same benchmark, or come from different devices.
    """
    found: dict[str, Any] | None = None
    seen: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"machine", "ceilings", "rows"} <= set(content):
            continue
        for row in content["rows"]:
            key = (row["group"], row["name"])
            if key in seen:
                raise ValueError(f"{path} and {seen[key]} both hold {key[0]}: {key[1]}; remove one of them")
            seen[key] = path
        if found is None:
            found = {**content, "rows": list(content["rows"])}
        elif found["machine"]["device"] != content["machine"]["device"]:
            raise ValueError(
                f"{path} was measured on {content['machine']['device']}, the files before it on "
                f"{found['machine']['device']}: keep one device a folder"
            )
        else:
            found["rows"] += content["rows"]
    return found


def read_traffic(folder: Path) -> list[Row]:
    """What ranks sent each other: the rows of the folder's ``ranks.json``, which traffic.py wrote; none without it."""
    path = folder / "ranks.json"
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["traffic"] if path.is_file() else []
    return rows


def select(rows: Iterable[Row], group: str, test: str, **facts: Any) -> list[Row]:
    """The rows of one benchmark function, those with these facts."""
    return [
        row
        for row in rows
        if row["group"] == group
        and row["name"].split("[")[0] == f"test_{test}"
        and all(row.get(name) == value for name, value in facts.items())
    ]
