"""InfoNCE forward + backward on this machine, side by side: the literal form, the factorised form, this package.

Run ``python benchmarks/info_nce.py`` for the table; ``--output FILE`` also writes it as JSON with the machine and the
versions. Values and gradients are held against the literal form in float64 first; if they differ nothing is timed.
Each measurement has a process of its own: on a CPU its peak memory is the process's, on a GPU the allocator's.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from infobert_fast import InfoNCE, functional, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, HIDDEN = 768, 300
SIZES = (128, 256, 512, 1024, 2048)
COMPILED = "infobert-fast, compiled"
LITERAL_LIMIT = 512  # at 1,024 pairs the literal form needs more than 13 GB


def factorised(x: Tensor, y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """What a careful PyTorch user writes: two projections, then an N x N x H broadcast left to autograd."""
    wx, wy = w1.split((x.shape[1], y.shape[1]), dim=1)
    scores = F.softplus(torch.relu((x @ wx.T)[None] + (y @ wy.T + b1)[:, None]) @ w2.reshape(-1) + b2)
    return scores.diagonal().mean() - (torch.logsumexp(scores, dim=1) - math.log(len(x))).mean()


IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "literal": reference.info_nce,
    "factorised": factorised,
    "infobert-fast": functional.info_nce,
    COMPILED: functools.partial(functional.info_nce, implementation="compiled"),
}


def operands(pairs: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    critic = InfoNCE(WIDTH, WIDTH, HIDDEN).to(DEVICE, dtype)
    features = [torch.randn(pairs, WIDTH, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2)]
    return [*features, *critic.F_func.parameters()]


def check() -> None:
    """Refuse to time anything that is not the same function: value and all six gradients, float64."""
    tensors = operands(33, torch.float64)
    results = []
    for function in IMPLEMENTATIONS.values():
        value = function(*tensors)
        results.append((value.detach(), *torch.autograd.grad(value, tensors)))
    for name, result in zip(IMPLEMENTATIONS, results, strict=True):
        for got, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12, msg=f"{name} is not the literal form")


def measure(name: str, pairs: int, repeats: int) -> dict[str, float]:
    """Median seconds of a forward + backward, and the peak memory it adds to the process; for the compiled form the
    seconds of its first call too, which compiles, or fetches from torch's cache on disk, and is no part of the rest.
    """
    tensors, function = operands(pairs), IMPLEMENTATIONS[name]
    first = {}
    if name == COMPILED:
        start = time.perf_counter()
        function(*tensors).backward()
        first["first_call_seconds"] = time.perf_counter() - start
    if DEVICE == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew, at what is resident now
    before = _memory()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*tensors).backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "extra_mib": _memory() - before, **first}


def _memory() -> float:
    """Peak MiB so far, of the allocator on a GPU, of the process elsewhere."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def machine() -> dict[str, str]:
    versions = {
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none",
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    if DEVICE == "cuda":
        return {"device": torch.cuda.get_device_name(), **versions}
    model = platform.processor()
    if (cpu := Path("/proc/cpuinfo")).exists():
        model = next((li for li in cpu.read_text().splitlines() if li.startswith("model name")), model).split(": ")[-1]
    return {"device": f"{model}, {torch.get_num_threads()} threads", **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, pairs, repeats = given.one
        print(json.dumps(measure(name, int(pairs), int(repeats))))
        return
    check()
    rows = []
    for pairs in given.sizes:
        for name in IMPLEMENTATIONS:
            if name == "literal" and pairs > LITERAL_LIMIT:
                continue
            repeats = {"literal": 1, "factorised": 3}.get(name, 9)
            command = [sys.executable, __file__, "--one", name, str(pairs), str(repeats)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"pairs": pairs, "implementation": name, **json.loads(result.stdout)})
    table = Table(title=f"InfoNCE forward + backward, d = {WIDTH}, H = {HIDDEN}, float32, {machine()['device']}")
    for column in (
        "pairs",
        "implementation",
        "ms",
        "first call, s",
        "extra MiB",
        "x literal's speed",
        "literal's memory / own",
    ):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    for row in rows:
        base = next((r for r in rows if (r["pairs"], r["implementation"]) == (row["pairs"], "literal")), None)
        table.add_row(
            f"{row['pairs']:,}",
            row["implementation"],
            f"{1000 * row['seconds']:,.1f}",
            f"{row['first_call_seconds']:.1f}" if "first_call_seconds" in row else "",
            f"{row['extra_mib']:,.0f}",
            f"{base['seconds'] / row['seconds']:,.1f}" if base else "-",
            f"{base['extra_mib'] / max(row['extra_mib'], 1):,.0f}" if base else "-",
        )
    Console().print(table)
    if given.output:
        content = {**machine(), "width": WIDTH, "hidden": HIDDEN, "rows": rows}
        given.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
