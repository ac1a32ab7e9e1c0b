"""What the upper bounds ask of their samples."""

from __future__ import annotations

import torch
from torch import Tensor

from infobert_fast import checks

__all__ = ["check_precision", "check_samples", "draw_partners", "rows_of"]


def check_samples(x_samples: Tensor | None, x_dim: int | None, y_samples: Tensor, y_dim: int) -> None:
    """Rows of the right width, one x for each y where x is used."""
    checks.matrix("y_samples", y_samples, width=y_dim)
    if x_samples is None or x_dim is None:
        return
    checks.matrix("x_samples", x_samples, width=x_dim)
    resolved = torch.is_autocast_enabled(x_samples.device.type) and x_samples.dtype != y_samples.dtype
    checks.agree("x_samples", x_samples, "y_samples", y_samples, dtype=not resolved)
    if x_samples.shape[0] != y_samples.shape[0]:
        raise ValueError(
            f"`x_samples` holds {x_samples.shape[0]} rows and `y_samples` {y_samples.shape[0]}; give one x for each y"
        )


def check_precision(x_samples: Tensor, weight: Tensor) -> None:
    """Refuse samples of another dtype than q's weights, except what autocast makes agree."""
    device = x_samples.device.type
    resolved = torch.is_autocast_enabled(device) and torch.float64 not in (x_samples.dtype, weight.dtype)
    if x_samples.dtype != weight.dtype and not resolved:
        raise TypeError(
            f"`x_samples` has dtype {x_samples.dtype} and the estimator's weights {weight.dtype}; they must agree: "
            f"call `.to({weight.dtype})` on the samples, or `.to({x_samples.dtype})` on the estimator"
        )


def draw_partners(y_samples: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each row a partner's number, uniform with replacement; ``generator`` lies on the samples' device."""
    rows = y_samples.shape[0]
    return torch.randint(rows, (rows,), device=y_samples.device, generator=generator)


def rows_of(name: str, value: Tensor) -> Tensor:
    """``[..., width]`` as a matrix of rows."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` was a {type(value).__name__}; it must be a torch.Tensor")
    return value.flatten(0, -2) if value.dim() > 2 else value
