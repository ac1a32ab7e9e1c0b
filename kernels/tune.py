"""Choose launch configurations by timing them on the device that is here. Nothing else in this package does.

A run never tunes: it takes ``launch.py``'s plans, or a table that an earlier call of this module wrote.
"""

import itertools
import statistics

import torch
from triton import TritonError

from .launch import WIDE
from .launch_table import Config, Plan
from .pairs import Pairs
from .rectangles import problems_of, rectangle_backward, rectangle_forward

CANDIDATES = tuple(Config(*sizes) for sizes in itertools.product((8, 16), (1, 2, 4, 8), (512, 1024, 2048, 4096, 8192)))
# rows of a and of b, of which one problem is timed for each regime; hidden units
SIZES, UNITS = {"short": WIDE // 2, "wide": 2 * WIDE}, 300


def tune(timer, candidates=CANDIDATES):
    """(Plan, {regime: {Config: seconds}}): the fastest candidate of each regime, the first of equals.

    ``timer(size, config)`` gives the seconds of one forward and backward pass of ``size`` x ``size`` pairs, or None
    where the device cannot run it.

    Raises:
        RuntimeError: where no candidate of a regime runs.
    """
    times = {}
    for regime, size in SIZES.items():
        measured = {candidate: timer(size, candidate) for candidate in candidates}
        times[regime] = {candidate: seconds for candidate, seconds in measured.items() if seconds is not None}
        if not times[regime]:
            raise RuntimeError(f"none of the {len(candidates)} candidate configurations ran for {size} x {size} pairs")
    return Plan(*(min(measured, key=measured.get) for measured in times.values())), times


def step(operands, grad, choice):
    """One forward and backward pass in the exact preset with the scores recomputed, which runs every score kernel."""
    a, b, w2, b2 = operands
    p = problems_of(a, b, Pairs(a.shape[0]), choice)
    lse, _ = rectangle_forward(a, b, w2, b2, p, keep_scores=False, fast=False)
    return lse, *rectangle_backward(grad, lse, a, b, w2, b2, None, p, (True,) * 4, fast=False)[:3]


def device_timer(device, rounds=20):
    """A ``timer`` for ``tune``: medians by CUDA events. A candidate whose results differ is an error, however fast."""
    made = {}

    def timer(size, choice):
        if size not in made:
            generator = torch.Generator(device).manual_seed(0)
            shapes = ((size, UNITS), (size, UNITS), (UNITS,), (1,))
            operands = [torch.randn(shape, device=device, generator=generator) for shape in shapes]
            operands[2] /= UNITS**0.5
            grad = torch.full((size,), 1 / size, device=device)
            made[size] = operands, grad, step(operands, grad, None)
        operands, grad, expected = made[size]
        try:
            result = step(operands, grad, choice)
            torch.cuda.synchronize(device)
        except (RuntimeError, TritonError):  # Triton's OutOfResources and ptxas errors are no RuntimeError
            return None
        for got, right in zip(result, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
        for _ in range(3):
            step(operands, grad, choice)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        events[0].record()
        for event in events[1:]:
            step(operands, grad, choice)
            event.record()
        torch.cuda.synchronize(device)
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / 1000

    return timer
