"""The profile names every part of a step, and leaves out those that a step without regularisers does not have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "profile_step.py"
OWN = {"input gradient", "bottleneck", "selection", "critic"}


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
