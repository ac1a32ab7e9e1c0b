"""How the rows of a call meet, looked at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from infobert_fast import checks
from infobert_fast.kernels.pairs import Pairs, Terms

__all__ = ["check_pairs"]


def check_pairs(
    local: tuple[str, Tensor],
    global_: tuple[str, Tensor],
    local_index: Tensor | None,
    pair_index: Tensor | None,
    *,
    chunk_size: int | None = None,
    pairs_of_ranks: Sequence[int] | None = None,
    include_pairs: bool = True,
    clip: float | None = None,
    fixed: str = "global_",
    labels: Tensor | None = None,
    paired: bool = True,
    validate: bool | None,
) -> Pairs:
    """The pairs of two named matrices of rows; ``paired`` says whether both must give as many.

    Left out of the sum of a row of the ``fixed`` side are, without ``include_pairs``, the pairs that use it or have its
    label, and with ``labels`` the other pairs of its label.
    """
    checks.positive_integer(
        "chunk_size", chunk_size, optional=True, advice="None makes all pairs negatives of each other"
    )
    if clip is not None:
        checks.number("clip", clip, low=1e-6, advice="scores are cut to [-clip, clip] in the sums; None cuts none")
    counts = []
    for (name, side), index, index_name in ((local, local_index, "local_index"), (global_, pair_index, "pair_index")):
        if index is not None and not (pairs_of_ranks is not None and index.numel() == 0):
            checks.index(index_name, index, side.shape[0], name, side.device, validate=validate)
        counts.append(side.shape[0] if index is None else index.shape[0])
    pairs, others = counts
    if paired and pairs != others:
        raise ValueError(
            f"`{local[0] if local_index is None else 'local_index'}` gives {pairs} pairs and "
            f"`{global_[0] if pair_index is None else 'pair_index'}` {others}; the counts must agree: pass "
            f"`pair_index` to say which row of `{global_[0]}` each pair uses"
        )
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (pairs,):
            was = f"{labels.dtype} of shape {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
            raise ValueError(f"`labels` was {was}; it must be torch.int64 of shape [{pairs}], one label a pair")
        checks.agree("labels", labels, *local, dtype=False)
    columns: Tensor | None = labels
    rows = labels
    if not include_pairs and labels is None:
        columns = local_index if fixed == "local" else pair_index
        if columns is None:
            columns = torch.arange(pairs, device=local[1].device)
    if not include_pairs and columns is not None:
        alone = pairs == 1 or (checks.values_readable(columns, validate) and bool((columns == columns[0]).all()))
        if alone:
            raise ValueError(
                f"`include_pairs` was False, and each of the {pairs} pairs is left out of every sum: give pairs of "
                f"several {'labels' if labels is not None else 'rows'}, or include_pairs=True"
            )
    terms = Terms(columns, rows, keep_pair=include_pairs and labels is not None, clip=clip)
    return Pairs(pairs, local_index, pair_index, chunk_size, pairs_of_ranks, terms)
