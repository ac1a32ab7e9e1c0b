"""What a benchmark measures with: a clock of the device, its memory, its ceilings, and its name."""

from __future__ import annotations

import ctypes
import datetime
import functools
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Stamp:
    """A moment in what the device does, which nobody waits for; the difference of two is in seconds, and waits.

    Nothing but a difference: an event's distance from another is a float32 of milliseconds, too coarse from one origin.
    """

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: Stamp) -> float:
        self.event.synchronize()
        return float(earlier.event.elapsed_time(self.event)) / 1e3


def clock() -> Any:
    """Seconds on a CPU; on a device a :class:`Stamp`. Launches that follow :func:`flush` are prepared while it runs, so
    that a short kernel's time has no host's in it; where launching takes longer, the device waits, and that counts.
    """
    return time.perf_counter() if DEVICE == "cpu" else Stamp()


@functools.cache
def _flushed() -> torch.Tensor:
    return torch.empty(256 * 2**20, dtype=torch.int8, device=DEVICE)  # five times an H100's L2


def flush() -> None:
    """Before a timed call: what an earlier one left in the GPU's L2 is overwritten. A CPU's caches are left as they
    are, since a training step finds its operands there too.
    """
    if DEVICE == "cuda":
        _flushed().zero_()


def peak_mib(call: Callable[[], Any]) -> float:
    """MiB that a call adds to what is held before it: the allocator's on a GPU, the process's elsewhere (Linux)."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps of earlier calls goes back first
        Path("/proc/self/clear_refs").write_text("5")  # and the peak starts anew, at what is resident now
    except (OSError, AttributeError):
        return float("nan")
    before = _resident_peak()
    call()
    return _resident_peak() - before


def _resident_peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@dataclass(frozen=True)
class Work:
    """The least that a function must do, whoever computes it.

    Args:
        fp32: fp32 operations, one lane's instruction each (a fused multiply-add is one).
        half: multiply-adds of half-precision matrix products.
        bytes: read once and written once.
    """

    fp32: float = 0.0
    half: float = 0.0
    bytes: float = 0.0

    def seconds(self, ceilings: dict[str, float]) -> float:
        """No machine with these ceilings is quicker: the slowest of the three, all overlapped."""
        return max(
            self.fp32 / ceilings["fp32_fma_per_s"],
            self.half / ceilings["half_fma_per_s"],
            self.bytes / ceilings["copy_bytes_per_s"],
        )


@functools.cache
def _ceilings() -> tuple[tuple[str, float], ...]:
    size, width = (2**30, 8192) if DEVICE == "cuda" else (2**28, 1024)
    source, target = (torch.ones(size, dtype=torch.int8, device=DEVICE) for _ in range(2))
    found = {"copy_bytes_per_s": 2 * size / _least(lambda: target.copy_(source))}
    for name, dtype in (("fp32_fma_per_s", torch.float32), ("half_fma_per_s", torch.bfloat16)):
        a, b = (torch.randn(width, width, device=DEVICE).to(dtype) for _ in range(2))
        found[name] = width**3 / _least(lambda a=a, b=b: a @ b)
    return tuple(found.items())


def ceilings() -> dict[str, float]:
    """Measured once a run: copy bandwidth (read and written), fp32 (no TF32) and bf16 multiply-adds of a matrix
    product.
    """
    if torch.backends.cuda.matmul.allow_tf32:
        raise RuntimeError("TF32 is on (torch.backends.cuda.matmul.allow_tf32); the fp32 ceiling would not be fp32's")
    return dict(_ceilings())


def _least(call: Callable[[], Any], rounds: int = 7) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = clock()
        call()
        seconds.append(clock() - start)
    return min(seconds)  # a ceiling is the best that was seen


def _version(library: str) -> str:
    return importlib.metadata.version(library) if importlib.util.find_spec(library) else "none"


def machine() -> dict[str, str]:
    """Device, driver, versions, date; nothing that names a host or a person."""
    facts = {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        capability = f"sm_{properties.major}{properties.minor}"
        driver = str(torch._C._cuda_getDriverVersion())
        return {"device": properties.name, "capability": capability, "cuda_driver": driver, **facts}
    name = platform.processor()
    if (cpu := Path("/proc/cpuinfo")).exists():
        lines = (line for line in cpu.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, f": {name}").split(": ")[-1]
    return {"device": f"{name}, {torch.get_num_threads()} threads", **facts}
