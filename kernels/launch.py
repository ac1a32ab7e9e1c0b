"""Launch configurations: a plain table per architecture, looked up at launch by the operand's device.

The plans here are untuned. A file that ``infobert tune`` measured takes their place where ``use_table`` or, at the
first launch, the environment variable ``INFOBERT_FAST_LAUNCH_TABLE`` names it; nothing is measured in a run.
"""

import contextlib
import functools
import os

import torch

from .launch_table import Config, Plan, read_table

VARIABLE = "INFOBERT_FAST_LAUNCH_TABLE"


WIDE = 2048

# `programs`: multiprocessors x resident programs x about four waves (12 one-warp or 3 four-warp programs at 168
# registers)
PLANS = {
    (8, 0): Plan(Config(16, 1, 4096), Config(16, 4, 1536)),
    (8, 6): Plan(Config(16, 1, 4096), Config(16, 4, 1024)),
    (8, 9): Plan(Config(16, 1, 4096), Config(16, 4, 1536)),
    (9, 0): Plan(Config(16, 1, 4096), Config(16, 4, 1536)),
    (10, 0): Plan(Config(16, 1, 4096), Config(16, 4, 1536)),
}
DEFAULT = Plan(Config(16, 1, 2048), Config(16, 4, 1024))
_given = None


@functools.cache
def table():
    """{capability: Plan} of the file given to ``use_table`` or else of the one that the environment names, read once;
    empty where neither is.
    """
    if _given is not None:
        return _given
    path = os.environ.get(VARIABLE)
    if not path:
        return {}
    try:
        return read_table(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"`{VARIABLE}` was {path!r}: {error}; unset it to run untuned") from error


def use_table(path):
    """Take the plans of a file from the next launch on, whatever the environment says.

    Raises:
        ValueError, OSError: as ``read_table``; the plans stay as they were.
    """
    global _given
    _given = read_table(path)
    table.cache_clear()


def plan(capability):
    """The plan of an Nvidia architecture: of the table, of this file, or the default."""
    return table().get(capability, PLANS.get(capability, DEFAULT))


def config(tensor, columns):
    """The configuration for rows of ``columns`` scores on the tensor's device; the default elsewhere, ROCm included."""
    nvidia = tensor.is_cuda and torch.version.hip is None
    chosen = plan(torch.cuda.get_device_capability(tensor.device)) if nvidia else DEFAULT
    return chosen.wide if columns >= WIDE else chosen.short


def on_device(tensor):
    """Context in which kernels launch on the tensor's own device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def near_units(matrix):
    """The matrix, copied where its units lie so far apart that a kernel's 32-bit offset of a unit would wrap."""
    return matrix if matrix.shape[1] * matrix.stride(1) < 2**31 else matrix.contiguous()


def threads_per_warp(tensor):
    """64 on AMD's data-centre chips, 32 elsewhere."""
    return 64 if tensor.is_cuda and torch.version.hip is not None else 32


def has_packed_half(tensor):
    """Whether the fast preset's kernels run for this tensor: fp32 or less on Nvidia's sm_80 or later, which have
    ``fma.rn.relu.f16x2``, and under the interpreter, which runs their plain twins. Elsewhere the preset is exact."""
    if tensor.dtype == torch.float64:
        return False
    if not tensor.is_cuda:
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) >= (8, 0)
