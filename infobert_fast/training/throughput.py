"""What a run did with its time: work counted on the host, seconds between synchronisations outside the steps."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

__all__ = ["ModuleTimer", "Throughput", "peak_tflops_of", "throughput_line"]

# Dense bfloat16 rate of the tensor cores in TFLOP/s, from NVIDIA's data sheets; the first name found in the device's
# counts. An H100 or A100 without a suffix is the SXM part.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
    "L4": 121.0,
    "A10": 125.0,
}


def peak_tflops_of(device: torch.device) -> float | None:
    """The device's dense bfloat16 TFLOP/s, None where we do not know it."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((peak for name, peak in PEAK_TFLOPS.items() if all(word in words for word in name.split())), None)


class Throughput(TrainerCallback):
    """Sentences, tokens and useful FLOPs of a run and its seconds, from the second optimisation step on.

    The first step (allocation, compilation, a check of the model), evaluations and checkpoints are left out; the device
    is waited for at the end of the first step, before an evaluation or a checkpoint, and at the end of the run.

    A sentence of n tokens costs ``units * (c n + 4 layers hidden n^2)`` useful FLOPs: c counted once by
    :func:`infobert_fast.training.look.counted_flops`, the second part attention's two products, a unit one forward.
    Neither padding nor recomputed activations count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.timer: ModuleTimer | None = None
        self.flops_per_token = 0.0
        self._started: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._seconds = self._flops = 0.0
        self._sentences = self._tokens = self._computed = 0
        self._paused = 0.0

    def count(self, lengths: Sequence[int], computed: int, units: float, config: Any) -> None:
        """One micro-batch of sentences of these lengths, for which the encoder computes this many tokens."""
        tokens = sum(lengths)
        attention = 4 * config.num_hidden_layers * config.hidden_size * sum(n * n for n in lengths)
        self._sentences += len(lengths)
        self._tokens += tokens
        self._computed += computed
        self._flops += units * (self.flops_per_token * tokens + attention)

    def timed(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a micro-step's own work."""
        return contextlib.nullcontext() if self.timer is None else self.timer.step()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = None
        self._reset()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._started is None:
            self._reset()
            self._started = self._now()
        self._maybe_pause(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._maybe_pause(control)

    def _maybe_pause(self, control: Any) -> None:
        if control.should_evaluate or control.should_save:
            self._paused = self._now()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._leave_out()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._leave_out()

    def _leave_out(self) -> None:
        """What has passed since the pause was no training."""
        if self._started is not None and self._paused:
            now = time.perf_counter()
            self._started += now - self._paused
            self._paused = now

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._paused = 0.0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._started is not None:
            self._seconds = self._now() - self._started

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def report(self, gather: Callable[[Tensor], Tensor], peak_tflops: float | None) -> dict[str, float]:
        """The run's rates over all ranks; a rate that cannot be told is left out. ``gather`` stacks a row a rank."""
        row = [self._sentences, self._tokens, self._computed, self._flops, self._seconds, self._peak_memory()]
        share = self.timer.share() if self.timer is not None else None
        row.append(-1.0 if share is None else share)
        rows = gather(torch.tensor([row], dtype=torch.float64, device=self._device)).cpu()
        sentences, tokens, computed, flops = rows[:, :4].sum(0).tolist()
        seconds, memory = rows[:, 4:6].max(0).values.tolist()
        found = {"peak_memory_gib": memory / 2**30}
        if seconds > 0 and sentences:
            found |= {
                "examples_per_second": sentences / seconds,
                "tokens_per_second": tokens / seconds,
                "padding": 1 - tokens / computed,
            }
            if peak_tflops is not None:
                found["model_flops_utilization"] = flops / seconds / (peak_tflops * 1e12 * len(rows))
        if bool((rows[:, 6] >= 0).all()):
            found["regularizers_share"] = float(rows[:, 6].mean())
        return found

    def _peak_memory(self) -> int:
        """Bytes: the device's allocations at their highest, on a CPU the process's resident memory."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset
        import resource  # Windows has no such module

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class ModuleTimer:
    """The share of a micro-step that modules take, forward and backward, on a sample of the micro-steps.

    Marks are events on the device's stream, read once when the run is over: no step waits. On a CPU they are the clock.
    Hooks around the modules' backward put two identities into the graph; numbers do not change.
    """

    def __init__(self, device: torch.device, modules: Sequence[nn.Module], every: int = 16) -> None:
        self._device, self._every = device, every
        self._steps: list[list[Any]] = []
        self._spans: list[list[Any]] = []
        self._seen, self._sampling = 0, False
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self._open(self._spans))
            module.register_forward_hook(lambda *_: self._close(self._spans))
            module.register_full_backward_pre_hook(lambda *_: self._open(self._spans))
            module.register_full_backward_hook(lambda *_: self._close(self._spans))

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A micro-step; every sixteenth is timed, the second first: the first also warms up."""
        self._seen += 1
        self._sampling = self._seen % self._every == 2 % self._every
        self._open(self._steps)
        yield
        self._close(self._steps)
        self._sampling = False

    def share(self) -> float | None:
        """Seconds within the modules over seconds of the timed micro-steps; None where none was timed."""
        if not self._steps:
            return None
        return self._total(self._spans) / self._total(self._steps)

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _open(self, spans: list[list[Any]]) -> None:
        if self._sampling:
            spans.append([self._mark()])

    def _close(self, spans: list[list[Any]]) -> None:
        if self._sampling:
            next(span for span in reversed(spans) if len(span) == 1).append(self._mark())

    def _total(self, spans: list[list[Any]]) -> float:
        whole = [span for span in spans if len(span) == 2]
        if self._device.type != "cuda":
            return sum(end - start for start, end in whole)
        torch.cuda.synchronize(self._device)
        return sum(start.elapsed_time(end) for start, end in whole)


def throughput_line(metrics: Mapping[str, float]) -> str:
    """One line for people; what is left out is said to be."""
    words = []
    if "tokens_per_second" in metrics:
        words.append(f"{metrics['examples_per_second']:,.1f} examples/s")
        words.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        words.append(f"{100 * metrics['padding']:.1f} % of the computed tokens padding")
    else:
        words.append("no rate (the first step is warm-up, and there was no other)")
    if "model_flops_utilization" in metrics:
        words.append(f"MFU {100 * metrics['model_flops_utilization']:.1f} %")
    else:
        words.append("MFU not told (no known peak for this device and precision: set peak_tflops)")
    if "regularizers_share" in metrics:
        words.append(f"regularisers {100 * metrics['regularizers_share']:.1f} % of a micro-step")
    else:
        words.append("regularisers not timed (profile_regularizers)")
    words.append(f"peak memory {metrics['peak_memory_gib']:.2f} GiB")
    return "throughput: " + " | ".join(words)
