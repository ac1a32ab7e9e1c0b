"""Memory against the literal form, in processes of their own; speed is measured by the benchmarks."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import sys
import torch
from infobert_fast.functional import info_nce

implementation = sys.argv[1]
torch.set_num_threads(2)

def resident(key):  # not ru_maxrss, which a child inherits from whoever started it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

def inputs(n, d=768, hidden=300):
    torch.manual_seed(0)
    shapes = (n, d), (n, d), (hidden, 2 * d), (hidden,), (1, hidden), (1,)
    return [(0.03 * torch.randn(*shape)).requires_grad_() for shape in shapes]

def step(tensors):
    return torch.autograd.grad(info_nce(*tensors, implementation=implementation), tensors)

step(inputs(8))
tensors = inputs(512)
before = resident("VmRSS")
step(tensors)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("implementation", ["torch", "compiled"])
def test_memory_against_the_literal_form(implementation):
    """N = 512, d = 768, H = 300, float32, forward + backward: 1/20 of the extra peak memory.

    Extra memory is the process's peak less what it held before; an import's earlier peak only counts against us.
    """

    def measure(implementation: str) -> float:
        command = [sys.executable, "-c", MEASURE, implementation]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert measure("reference") >= 20 * measure(implementation)
