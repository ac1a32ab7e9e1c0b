"""``infobert tune``: time the kernels' launch configurations on this machine's GPU and write the table of the best."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from infobert_fast import checks
from infobert_fast.cli.files import write_json

__all__ = ["prepare"]

AFTERWARDS = """Use it with INFOBERT_FAST_LAUNCH_TABLE={path}, or from Python:
  from infobert_fast.kernels.launch import use_table; use_table("{path}")"""


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Find the device and the table to add to; the work is to time the candidates."""
    about = "Time the kernels' launch configurations on this machine's GPU and write the table of the best."
    parser = argparse.ArgumentParser(prog="infobert tune", allow_abbrev=False, description=about)
    parser.add_argument("table", type=Path, help="the JSON file to write; other architectures' entries in it are kept")
    given = parser.parse_args(list(arguments))
    if not torch.cuda.is_available() or torch.version.hip is not None:
        raise ValueError("there is no CUDA device here; tune on a machine that has the GPU to tune for")
    checks.writable("table", given.table)
    from infobert_fast.kernels.launch_table import FORMAT, read_table

    content: dict[str, Any] = {"format": FORMAT}
    if given.table.exists():
        read_table(given.table)  # refuses what is no launch table rather than replace it
        content = json.loads(given.table.read_text(encoding="utf-8"))
    return lambda: _tune(given.table, content)


def _tune(path: Path, content: dict[str, Any]) -> None:
    import triton

    from infobert_fast.kernels.launch_table import chip_name, table_entry
    from infobert_fast.kernels.tune import device_timer, tune

    device = torch.device("cuda", torch.cuda.current_device())
    plan, times = tune(device_timer(device))
    facts = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__}
    content[chip_name(torch.cuda.get_device_capability(device))] = table_entry(plan, **facts)
    write_json(path, content)
    show(times)
    print(AFTERWARDS.format(path=path))


def show(times: dict[str, dict[Any, float]]) -> None:
    """The five fastest configurations of each regime."""
    table = Table("regime", "rows", "warps", "programs", "ms")
    for regime, measured in times.items():
        for config in sorted(measured, key=measured.__getitem__)[:5]:
            table.add_row(regime, *map(str, config), f"{measured[config] * 1000:.3f}")
    Console().print(table)
