"""The anchored-feature regulariser: robust and useful tokens should tell much about their sentence."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators import InfoNCE

__all__ = ["NEGATIVES", "AnchoredFeature", "Negatives"]

Negatives = Literal["chunk", "batch", "all"]
NEGATIVES: tuple[Negatives, ...] = ("chunk", "batch", "all")


class AnchoredFeature(nn.Module):
    """InfoNCE lower bound between anchored tokens and their sentence; subtract ``alpha`` times it from the loss.

    Anchors are chosen by the gradient of the loss, see :func:`infobert_fast.functional.select_anchors`; each is paired
    with its sentence's feature, the state that the model's head reads.

    Args:
        cl, ch: the anchor window.
        negatives: ``"chunk"`` shuffles the batch's pairs with a fixed permutation and contrasts within consecutive
            chunks of the batch size, as the reference does; ``"batch"`` contrasts each pair with all of the batch's;
            ``"all"`` with those of all ranks, see :mod:`infobert_fast.functional.ranks`, and with the batch's where
            no process group is initialised.
        seed: of the permutation, which depends on the number of pairs alone.
    """

    def __init__(self, cl: float = 0.5, ch: float = 0.9, negatives: Negatives = "chunk", seed: int = 42) -> None:
        super().__init__()
        checks.choice("negatives", negatives, NEGATIVES)
        self.window(cl, ch)
        self.negatives, self.seed = negatives, seed

    def window(self, cl: float, ch: float) -> None:
        """Set the anchor window.

        Raises:
            ValueError: unless ``0 <= cl <= ch <= 1``.
        """
        checks.anchor_window(cl, ch)
        self.cl, self.ch = cl, ch

    @property
    def over_ranks(self) -> bool:
        """Whether :meth:`forward` wants ``pairs_of_ranks``."""
        return self.negatives == "all" and dist.is_initialized()

    def count(self, lengths: Sequence[int]) -> int:
        """How many anchors sentences of these lengths have together."""
        return int(functional.anchor_counts(lengths, self.cl, self.ch)[1].sum())

    def forward(
        self,
        critic: InfoNCE,
        embedded: Tensor,
        sentence: Tensor,
        grad: Tensor,
        attention_mask: Tensor,
        lengths: Sequence[int],
        pairs_of_ranks: Sequence[int] | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats: 0, with the critic in its graph, where no token is an anchor.

        Args:
            critic: owns the critic's weights; a submodule of the model, so that they are reduced, saved and clipped
                with it.
            embedded: ``[batch, length, hidden]``.
            sentence: ``[batch, hidden]``, the sentence feature.
            grad: ``[batch, length, hidden]``, of the loss with respect to the perturbation.
            attention_mask: ``[batch, length]``.
            lengths: tokens per sentence, known on the host.
            pairs_of_ranks: :meth:`count` of each rank, where :attr:`over_ranks`; they differ from rank to rank and fix
                shapes, so that hosts have to exchange them (:func:`infobert_fast.functional.exchange`) and a step with
                them cannot be captured in a CUDA graph.
        """
        anchors = functional.anchor_indices(grad, attention_mask, self.cl, self.ch, lengths=lengths, validate=False)
        pairs = anchors.shape[0]
        if (pairs if pairs_of_ranks is None else sum(pairs_of_ranks)) == 0:
            # A rank whose graph lacks the critic would leave the others waiting for its gradient, and DeepSpeed adds
            # gradients up in the order of their arrival: zero times one pair's bound is the graph of every other rank.
            first = anchors.new_zeros(1)
            return 0 * critic(embedded.flatten(0, 1), sentence, local_index=first, pair_index=first, chunk_size=1)
        chunk_size = None
        if self.negatives == "chunk":
            anchors = anchors[_shuffle(pairs, self.seed, anchors.device)]
            chunk_size = embedded.shape[0]
        rows, local_index = embedded.flatten(0, 1), None if pairs else anchors
        if pairs:  # no token is an anchor twice: its row's gradient is written in one pass
            rows = functional.take_rows(rows, anchors, distinct=True, validate=False)
        return critic(
            rows,
            sentence,
            local_index=local_index,
            pair_index=anchors // embedded.shape[1],
            chunk_size=chunk_size,
            pairs_of_ranks=pairs_of_ranks,
        )


@functools.lru_cache(maxsize=256)
def _shuffle(pairs: int, seed: int, device: torch.device) -> Tensor:
    """The reference's permutation of this many pairs: NumPy's legacy generator, reseeded at every step."""
    permutation = np.arange(pairs)
    np.random.RandomState(seed).shuffle(permutation)
    host = torch.from_numpy(permutation)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
