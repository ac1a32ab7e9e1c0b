"""The device's clock, with events as a device has them: their distance is a float32 of milliseconds."""

import numpy as np
import pytest
import torch


@pytest.fixture
def measuring(monkeypatch):
    from infobert_fast.benchmarks.harness import measuring

    monkeypatch.setattr(measuring, "DEVICE", "cuda")
    return measuring


def test_the_clock_is_as_fine_after_minutes_as_at_the_start(measuring, monkeypatch):
    now, waited = 0.0, []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.milliseconds = now

        def synchronize(self):
            waited.append(self)

        def elapsed_time(self, other):
            return float(np.float32(other.milliseconds - self.milliseconds))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for milliseconds in (0.0, 400_000.0):
        now += milliseconds
        for microseconds in (20.0, 7.3):
            start = measuring.clock()
            assert not waited  # or a kernel's time would begin with its launch by the host
            now += microseconds / 1e3
            end = measuring.clock()
            assert 1e6 * (end - start) == pytest.approx(microseconds, rel=1e-3)
            assert waited.pop() is end.event
