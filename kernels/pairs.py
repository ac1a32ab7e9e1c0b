"""What a call is about, handed down whole from the public function to the launcher."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pairs", "Terms"]


class Terms(NamedTuple):
    """Which scores ``u_ij`` the sum over j of row i takes, and how: every one as it is, where nothing is given."""

    columns: Tensor | None = None  # int64 [J]: a score is left out where its column's number is its row's
    rows: Tensor | None = None  # int64 [I], the row's own position where None
    keep_pair: bool = False  # the score of i = j stays, whatever the numbers say
    clip: float | None = None  # a score enters the sum as the nearest number in [-clip, clip]

    def left_out(self, i: slice, j: slice) -> Tensor:
        """Of a block of scores, where ``columns`` are given."""
        assert self.columns is not None
        place = torch.arange(i.start, i.stop, device=self.columns.device)
        equal = (place if self.rows is None else self.rows[i]).unsqueeze(1) == self.columns[j]
        if not self.keep_pair:
            return equal
        return equal & (place.unsqueeze(1) != torch.arange(j.start, j.stop, device=place.device))

    def take(self, u: Tensor, i: slice, j: slice) -> Tensor:
        """A block of scores ``[..., i, j]`` as the sums take it."""
        if self.clip is not None:
            u = u.clamp(-self.clip, self.clip)
        return u if self.columns is None else u.masked_fill(self.left_out(i, j), -torch.inf)

    def weigh(self, weights: Tensor, u: Tensor, i: slice, j: slice) -> Tensor:
        """The weights of a block in the gradient: zero where ``u`` is clipped or left out, whatever a row of no term
        made of it.
        """
        if self.clip is not None:
            weights = weights.masked_fill(u.abs() > self.clip, 0)
        return weights if self.columns is None else weights.masked_fill(self.left_out(i, j), 0)

    def number(self, pairs: int) -> int | Tensor:
        """How many scores each pair's sum has: ``pairs``, or int64 [pairs], without a comparison of all pairs."""
        if self.columns is None:
            return pairs
        ordered = self.columns.sort().values
        equal = torch.searchsorted(ordered, self.columns, right=True) - torch.searchsorted(ordered, self.columns)
        return pairs + self.keep_pair - equal


class Pairs(NamedTuple):
    """Pair p is ``(local[local_index[p]], global_[pair_index[p]])``, the identity where an index is None."""

    count: int  # type: ignore[assignment] # of this call; the tuple's method of that name is of no use here
    local_index: Tensor | None = None
    pair_index: Tensor | None = None
    chunk_size: int | None = None  # None: every pair is a negative of every other
    of_ranks: Sequence[int] | None = None  # pairs of each rank, where all of them are
    terms: Terms = Terms()
