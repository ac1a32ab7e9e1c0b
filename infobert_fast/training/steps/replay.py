"""The same dropout masks in every pass of a step, for any model and at no memory: the random state is replayed."""

from __future__ import annotations

import torch

__all__ = ["RandomReplay", "check_device"]


def check_device(device: torch.device) -> None:
    """Refuse a device whose random state is not replayed.

    Raises:
        ValueError: for a device other than a CPU or CUDA's, whose dropout masks would differ from pass to pass.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"the device is {device.type!r}, whose random state is not replayed, so that dropout masks would differ "
            f"from pass to pass: train on a CPU (use_cpu=True) or a CUDA device"
        )


class RandomReplay:
    """Remembers the default generators' state at construction; :meth:`rewind` returns to it.

    Every draw between two rewinds repeats, dropout masks among them, on the CPU and on ``device``. A CUDA generator's
    state is a seed and an offset kept on the host: reading it does not wait for the device.

    Raises:
        ValueError: as :func:`check_device`.
    """

    def __init__(self, device: torch.device) -> None:
        check_device(device)
        self._device = device
        self._cpu_state = torch.get_rng_state()
        self._device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind(self) -> None:
        """Return to the remembered state."""
        torch.set_rng_state(self._cpu_state)
        if self._device_state is not None:
            torch.cuda.set_rng_state(self._device_state, self._device)
