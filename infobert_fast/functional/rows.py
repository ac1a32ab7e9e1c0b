"""Rows of a matrix through an index, with a gradient that does not depend on which thread comes first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from infobert_fast import checks
from infobert_fast.functional.implementation import Implementation, choose

__all__ = ["take_rows"]


def take_rows(
    rows: Tensor,
    index: Tensor,
    *,
    distinct: bool = False,
    implementation: Implementation = "auto",
    validate: bool | None = None,
) -> Tensor:
    """``rows[index]``, whose gradient has the same bits in every run; that of ``rows[index]`` is summed by atomics.

    Args:
        rows: ``[M, d]``.
        index: int64 ``[P]``.
        distinct: no row is named twice, as among anchors: the gradient is then written in one pass, nothing is sorted.
            If that is not true, the gradient is wrong.
        implementation: see :mod:`infobert_fast.functional`; ``"reference"`` is ``rows[index]``.
        validate: read and check the values too: on a CPU unless False, on a GPU only if True (it waits for the device).

    Returns:
        ``[P, d]`` in the dtype of ``rows``. Repeated rows' gradients are added in float32 at least by the kernels.

    Raises:
        TypeError, ValueError, IndexError: for rows or an index that do not fit, or repeat although ``distinct``.
    """
    checks.matrix("rows", rows)
    checks.index("index", index, rows.shape[0], "rows", rows.device, validate=validate)
    if distinct and checks.values_readable(index, validate) and index.unique().numel() != index.numel():
        raise ValueError("`index` repeats a row although `distinct` was True; pass distinct=False")
    chosen = choose(implementation, rows, kernel=True)
    if chosen == "reference":
        return rows[index]
    if chosen == "torch":
        return F.embedding(index, rows)
    from infobert_fast.kernels import rows as kernels

    return kernels.take_rows(rows, index, distinct)
