"""The profile names every part of a step, and leaves out those that a step without regularisers does not have."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "suites" / "profile_step.py"
OWN = {"input gradient", "bottleneck", "selection", "critic"}


def test_the_devices_time_belongs_to_the_part_that_launched_it(monkeypatch):
    """Events as the profiler tells them: labels, launches, and on the device kernels and copies of the labels."""
    from infobert_fast.benchmarks.suites import profile_step

    def event(name, start, end, *, id=0, device=DeviceType.CPU, annotation=False):
        time = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, id=id, device_type=device, is_user_annotation=annotation, time_range=time)

    kernel = functools.partial(event, device=DeviceType.CUDA)
    events = [
        event("step", 0, 100, annotation=True),
        event("forward", 0, 20, annotation=True),
        event("aten::mm", 2, 5, id=7),
        event("cudaLaunchKernel", 3, 4, id=7),
        event("ascent", 30, 40, annotation=True),
        event("cuLaunchKernelEx", 31, 32, id=8),  # Triton's: within no operator
        event("cudaMemsetAsync", 50, 51, id=9),
        kernel("gemm", 10, 70, id=7),
        kernel("ascent_kernel", 70, 90, id=8),
        kernel("Memset", 90, 95, id=9),
        kernel("forward", 10, 70, id=7, annotation=True),
    ]
    monkeypatch.setattr(profile_step, "DEVICE", "cuda")
    found = profile_step.summarise(SimpleNamespace(events=lambda: events), 1, 1)
    assert {name: part["device_us"] for name, part in found["parts"].items()} == {
        "forward": 60,
        "ascent": 20,
        "rest": 5,
    }
    assert found["us"] == 85
    assert (found["launches"], found["operators"]) == (2, 1)


def test_parts_of_a_step_with_the_regularisers_and_without(tmp_path):
    output = tmp_path / "profile.json"
    sizes = {"batch": 4, "length": 16, "hidden": 64, "layers": 1, "adv_steps": 2, "repeats": 2}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--output", str(output)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    found = json.loads(output.read_text())
    assert set(found) == {"machine", "settings", "on", "off"}
    common = {"forward", "backward", "perturbation", "ascent", "rest"}
    assert (set(found["on"]["parts"]), set(found["off"]["parts"])) == (common | OWN, common)
    for mode in (found["on"], found["off"]):
        assert sum(part["share"] for part in mode["parts"].values()) == pytest.approx(1)
        assert all(part["operators"] > 0 for part in mode["parts"].values())
        assert mode["us"] > 0
    # What both do, they do alike: the regularisers add operators of their own, and to the backward.
    on, off = (found[name]["parts"] for name in ("on", "off"))
    assert on["forward"]["operators"] == off["forward"]["operators"]
    assert on["backward"]["operators"] > off["backward"]["operators"]
