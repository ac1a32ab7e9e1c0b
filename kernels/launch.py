"""Launch configurations: a plain table per architecture, looked up at launch by the operand's device, untuned."""

import contextlib
from typing import NamedTuple

import torch


class Config(NamedTuple):
    """Sizes of one launch. A column tile is four times as wide as the program has threads."""

    rows: int  # global rows per score program; 16 x 4 scores per thread
    warps: int  # of a score program
    programs: int  # as many as fill the chip several times over; decides how far one row's columns are split


class Plan(NamedTuple):
    """Configurations of both regimes of one architecture."""

    short: Config  # rows of fewer than WIDE columns
    wide: Config


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


def config(tensor, columns):
    """The configuration for rows of ``columns`` scores on the tensor's device; the default elsewhere, ROCm included."""
    plan = DEFAULT
    if tensor.is_cuda and torch.version.hip is None:
        plan = PLANS.get(torch.cuda.get_device_capability(tensor.device), DEFAULT)
    return plan.wide if columns >= WIDE else plan.short


def on_device(tensor):
    """Context in which kernels launch on the tensor's own device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def threads_per_warp(tensor):
    """64 on AMD's data-centre chips, 32 elsewhere."""
    return 64 if tensor.is_cuda and torch.version.hip is not None else 32
