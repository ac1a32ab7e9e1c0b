"""Results of no machine, with the rows that the report and the growth model read."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def results() -> dict[str, Any]:
    rows: list[dict[str, Any]] = []

    def add(group: str, test: str, median: float, mib: float = 10.0, **facts: Any) -> None:
        name = f"test_{test}[{'-'.join(map(str, facts.values()))}]"
        quartiles = {"median": median, "q1": 0.95 * median, "q3": 1.1 * median, "rounds": 5}
        rows.append(
            {"group": group, "name": name, **facts, **quartiles, "extra_mib": mib, "first_call_s": 2 * median}
            | ({"roofline": 0.004 / median} if group == "path" else {})
        )
        if group == "info_nce":
            rows[-1]["roofline"] = (6 * facts["pairs"] ** 2 * 300 + 6 * facts["pairs"] * 768 * 300) / 1e11 / median

    for pairs in (128, 256, 512, 1024, 2048):
        for name, slower, mib in (
            ("literal", 90, 0.012),
            ("factorised", 9, 0.0035),
            ("infobert-fast", 1.0, 2e-5),
            ("infobert-fast compiled", 0.6, 1e-5),
        ):
            if pairs <= {"literal": 512, "factorised": 1024}.get(name, pairs):
                seconds = slower * (1.7e-7 * pairs**2 + 1e-5 * pairs)
                add("info_nce", "all_pairs", seconds, 25 + mib * pairs**2, implementation=name, pairs=pairs)
    rows[-1]["extra_mib"] = 0.0  # of a call that reuses pages
    rows[2]["extra_mib"] = 0.0
    size = {"layers": 6, "width": 768, "batch": 8, "length": 128, "passes": 3}
    for name, seconds in (
        ("standard", 1.6),
        ("FreeLB", 4.7),
        ("floor", 6.3),
        ("infobert-fast", 6.4),
        ("literal", 8.8),
    ):
        add("step", "step", seconds, 900.0, implementation=name, **size)
    parts = {"forward": 0.6, "input gradient": 0.55, "backward": 0.8, "bottleneck": 0.004, "anchored features": 0.02}
    for part, seconds in {**parts, "ascent": 0.003}.items():
        add("step", "parts", seconds, part=part, **size)
    for shape in ([4, 24, 768], [32, 128, 768]):
        add(
            "regularizers",
            "regularizers",
            5e-8 * shape[0] * shape[1] * 30,
            implementation="eager",
            part="club",
            shape=shape,
        )
    for shape, seconds in (([4, 32, 768], 0.003), ([32, 128, 768], 0.05)):
        for negatives in ("chunk", "batch"):
            add("path", "path", seconds, implementation="infobert-fast", shape=shape, negatives=negatives)
    machine = {"device": "A processor, 2 threads", "torch": "2", "date": "2026-01-01"}
    ceilings = {"copy_bytes_per_s": 1e10, "fp32_fma_per_s": 1e11, "half_fma_per_s": 2e11}
    return {"machine": machine, "ceilings": ceilings, "rows": rows}
