"""Argument checks whose messages name the argument, what it was, what it may be and what to do.

Shapes, dtypes and devices are always checked: that is host-side information and free. Values (index ranges, masks) are
read only where reading costs no device sync: on CPU tensors, or on a device when the caller asks with
``validate=True``; never while a graph is captured or compiled.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "agree",
    "anchor_window",
    "attention_mask",
    "choice",
    "index",
    "matrix",
    "number",
    "positive_integer",
    "values_readable",
    "vector",
    "writable",
    "zeros_and_ones",
]


def values_readable(tensor: Tensor, validate: bool | None) -> bool:
    """Whether reading ``tensor`` is free of a sync or was asked for, and no graph is recorded."""
    if torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        return False
    if tensor.device.type == "cpu":
        return validate is not False
    return bool(validate) and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Refuse a value outside a closed set."""
    if value not in allowed:
        raise ValueError(f"`{name}` was {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def number(name: str, value: float, *, low: float = -math.inf, high: float = math.inf, advice: str = "") -> None:
    """Refuse anything that is not a finite number in ``[low, high]``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        span = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"`{name}` was {value!r}; it must be a finite number {span}{'; ' + advice if advice else ''}")


def positive_integer(name: str, value: int | None, *, optional: bool = False, advice: str = "") -> None:
    """Refuse anything that is not an integer of at least 1 (or None where ``optional``)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        allowed = "None or an integer of at least 1" if optional else "an integer of at least 1"
        raise ValueError(f"`{name}` was {value!r}; it must be {allowed}{'; ' + advice if advice else ''}")


def writable(name: str, path: Path, *, folder: bool = False) -> None:
    """Refuse a file, or a ``folder`` of files, that cannot be written, before the work that it is for. Leaves no trace.

    Raises:
        OSError: naming the argument and the path.
    """
    if path.is_dir() and not folder:
        raise IsADirectoryError(f"`{name}` was {path}, which is a folder; it must be a file: add its name")
    try:
        there = path if folder else path.parent
        while not there.exists():
            there = there.parent  # folders that are missing will be made
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"whether the disk takes anything")
    except OSError as error:
        raise OSError(f"`{name}` was {path}, where nothing can be written ({error}): choose another") from error


def anchor_window(cl: float, ch: float) -> None:
    """Refuse an anchor window that is not ``0 <= cl <= ch <= 1``."""
    number("cl", cl, low=0.0, high=1.0, advice="it is the fraction of least useful tokens to leave out")
    number("ch", ch, low=0.0, high=1.0, advice="it is the fraction at which the non-robust tokens begin")
    if cl > ch:
        raise ValueError(f"`cl` was {cl!r} and `ch` {ch!r}; `cl` must not exceed `ch`: swap them")


def matrix(name: str, value: Tensor, *, width: int | None = None, like: tuple[str, Tensor] | None = None) -> None:
    """Refuse anything but a floating matrix ``[rows >= 1, width]`` on the device and of the dtype of ``like``."""
    if not isinstance(value, Tensor):
        advice = ": call `torch.from_numpy` on it" if type(value).__name__ == "ndarray" else ""
        raise TypeError(f"`{name}` was a {type(value).__name__}; it must be a torch.Tensor{advice}")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` has dtype {value.dtype}; it must be a floating dtype: call `.float()` on it")
    if value.dim() == 1:
        raise ValueError(
            f"`{name}` has shape {list(value.shape)}; it must be a matrix [rows, width]: call "
            f"`.unsqueeze(1)` on it, where each row is one number"
        )
    if value.dim() != 2:
        advice = "call `.unsqueeze(1)` for rows of one feature" if value.dim() == 1 else "flatten it first"
        raise ValueError(f"`{name}` has shape {list(value.shape)}; it must be a matrix [rows, width]: {advice}")
    if width is not None and value.shape[1] != width:
        raise ValueError(
            f"`{name}` is {value.shape[1]} wide; it must be {width} wide, the width the critic was built for"
        )
    if value.shape[0] == 0:
        raise ValueError(
            f"`{name}` holds zero rows; an estimate needs at least one pair: skip the call for an empty batch"
        )
    if like is not None:
        agree(name, value, *like)


def vector(name: str, value: Tensor, size: int, *, like: tuple[str, Tensor]) -> None:
    """Refuse anything but a vector ``[size]`` on the device and of the dtype of ``like``."""
    if value.shape != (size,):
        raise ValueError(f"`{name}` has shape {list(value.shape)}; the critic's other weights make it [{size}]")
    agree(name, value, *like)


def agree(name: str, value: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """Refuse tensors on two devices or, unless told otherwise, of two dtypes."""
    if value.device != other.device:
        raise ValueError(
            f"`{name}` is on {value.device} and `{other_name}` on {other.device}; they must share a device: "
            f"move one with `.to(...)`"
        )
    if dtype and value.dtype != other.dtype:
        raise TypeError(
            f"`{name}` has dtype {value.dtype} and `{other_name}` {other.dtype}; they must agree: "
            f"cast one, or call under torch.autocast"
        )


def index(name: str, value: Tensor, rows: int, of: str, device: torch.device, *, validate: bool | None = None) -> None:
    """Refuse anything but a non-empty int64 vector of row numbers in ``[0, rows)`` on ``device``."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 1:
        was = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"`{name}` was {was}; it must be a vector of dtype torch.int64")
    if value.numel() == 0:
        raise ValueError(f"`{name}` is empty; an estimate needs at least one pair: skip the call for an empty batch")
    if value.device != device:
        raise ValueError(
            f"`{name}` is on {value.device} and `{of}` on {device}; they must share a device: move it with `.to`"
        )
    if values_readable(value, validate):
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= rows:
            raise IndexError(
                f"`{name}` holds values from {low} to {high}; `{of}` has {rows} rows: they must lie in [0, {rows})"
            )


def zeros_and_ones(name: str, value: Tensor) -> None:
    """Refuse a mask that holds anything else; reads its values."""
    if value.dtype != torch.bool and not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(f"`{name}` holds values other than 0 and 1; give 1 for tokens and 0 for padding")


def attention_mask(
    value: Tensor,
    shape: tuple[int, ...] | None = None,
    *,
    device: torch.device | None = None,
    validate: bool | None = None,
) -> None:
    """Refuse a mask that is not ``[batch, length]`` of 0 and 1, or that is all zero for a sentence."""
    if not isinstance(value, Tensor) or value.dim() != 2:
        was = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`attention_mask` was {was}; it must be a [batch, length] tensor of 0 and 1")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"`attention_mask` has shape {list(value.shape)}; the hidden states make it {list(shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"`attention_mask` is on {value.device} and the hidden states on {device}: move it with `.to`")
    if not values_readable(value, validate):
        return
    zeros_and_ones("attention_mask", value)
    empty = (value.to(torch.int64).sum(dim=1) == 0).nonzero().flatten()
    if empty.numel():
        raise ValueError(
            f"`attention_mask` is all zero for sentence {int(empty[0])}; every sentence needs a token: drop it"
        )
