"""InfoBERT's two regularisers, from hidden states to a bound: the information bottleneck and the anchored features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators import CLUB, InfoNCE

__all__ = ["AFR_VERSIONS", "VERSIONS", "AnchoredFeature", "InformationBottleneck", "Kind", "Negatives", "Sampling"]

Kind = Literal["learned-flat", "learned-tokens", "sentence", "tokens"]
Sampling = Literal["exact", "sampled"]
Negatives = Literal["chunk", "batch"]

# The `version` numbers people know: which upper bound, and whether the anchored-feature regulariser is added.
VERSIONS: dict[int, Kind | None] = {
    -1: None,
    0: "learned-flat",
    1: "learned-tokens",
    2: "sentence",
    3: "tokens",
    4: None,
    5: "sentence",
    6: "tokens",
}
AFR_VERSIONS = (4, 5, 6)


class InformationBottleneck(nn.Module):
    """Upper bound on the information that features keep of the input; add ``beta`` times it to the loss.

    ============== ======= ====================================================================================
    kind           version bound
    ============== ======= ====================================================================================
    tokens         3, 6    CLUBv2 over the rows of the embedding block's output at tokens (the paper)
    sentence       2, 5    CLUBv2 over the sentences' first hidden states
    learned-tokens 1       CLUB between embedding row and last hidden state, over tokens (padding left out)
    learned-flat   0       CLUB between the whole embedding layer, zero-padded to ``max_length``, and the sentence
    ============== ======= ====================================================================================

    Args:
        kind: as above.
        sampling: ``"exact"`` averages over every partner, ``"sampled"`` draws one (the reference).
        hidden_size, max_length: for the learned kinds, whose network ``club`` has its own optimiser and must not be
            given to another.
        average: let the learned kinds average their likelihood gradient over all ranks.
    """

    def __init__(
        self,
        kind: Kind = "tokens",
        sampling: Sampling = "exact",
        *,
        hidden_size: int | None = None,
        max_length: int | None = None,
        average: bool = False,
    ) -> None:
        super().__init__()
        checks.choice("kind", kind, [k for k in dict.fromkeys(VERSIONS.values()) if k])
        checks.choice("ib_sampling", sampling, ("exact", "sampled"))
        self.kind, self.sampling, self.average = kind, sampling, average
        self.club: CLUB | None = None
        if kind in ("learned-flat", "learned-tokens"):
            hidden_size = _needed("hidden_size", hidden_size)
            self.max_length = _needed("max_length", max_length) if kind == "learned-flat" else 1
            self.club = CLUB(self.max_length * hidden_size, hidden_size)

    def forward(
        self,
        embedded: Tensor,
        last_hidden: Tensor,
        attention_mask: Tensor,
        lengths: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats.

        Args:
            embedded, last_hidden: ``[batch, length, hidden]``, the embedding block's output and the encoder's.
            attention_mask: ``[batch, length]``.
            lengths: tokens per sentence, known on the host.
            generator: draws the partners of ``"sampled"``, on the device of the states.
        """
        if self.kind in ("tokens", "sentence"):
            rows, mask = (embedded, attention_mask) if self.kind == "tokens" else (last_hidden[:, 0], None)
            if self.sampling == "exact":
                return functional.club(rows, mask)
            every = attention_mask if mask is not None else attention_mask.new_ones(len(attention_mask))
            return functional.club_sampled(rows, functional.sample_rows(every, generator), mask)
        assert self.club is not None
        if self.kind == "learned-flat":
            short = self.max_length - embedded.shape[1]
            if short < 0:
                raise ValueError(
                    f"`max_length` was {self.max_length}; a batch is {embedded.shape[1]} tokens long: raise it"
                )
            x = nn.functional.pad(embedded * attention_mask.unsqueeze(-1).to(embedded.dtype), (0, 0, 0, short)).flatten(
                1
            )
            y = last_hidden[:, 0]
        else:
            rows = torch.argsort(attention_mask.flatten() == 0, stable=True)[: sum(lengths)]
            x, y = embedded.flatten(0, 1)[rows], last_hidden.flatten(0, 1)[rows]
        self.club.fit_step(x.detach(), y.detach(), average=self.average)
        return self.club.frozen_estimate(x, y, sampled=self.sampling == "sampled", generator=generator)


class AnchoredFeature(nn.Module):
    """InfoNCE lower bound between anchored tokens and their sentence; subtract ``alpha`` times it from the loss.

    Anchors are chosen by the gradient of the loss, see :func:`infobert_fast.functional.select_anchors`; each is paired
    with its sentence's first hidden state.

    Args:
        cl, ch: the anchor window.
        negatives: ``"chunk"`` shuffles the batch's pairs with a fixed permutation and contrasts within consecutive
            chunks of the batch size, as the reference does; ``"batch"`` contrasts each pair with all of the batch's.
        seed: of the permutation, which depends on the number of pairs alone.
    """

    def __init__(self, cl: float = 0.5, ch: float = 0.9, negatives: Negatives = "chunk", seed: int = 42) -> None:
        super().__init__()
        checks.anchor_window(cl, ch)
        checks.choice("negatives", negatives, ("chunk", "batch"))
        self.cl, self.ch, self.negatives, self.seed = cl, ch, negatives, seed

    def forward(
        self,
        critic: InfoNCE,
        embedded: Tensor,
        sentence: Tensor,
        grad: Tensor,
        attention_mask: Tensor,
        lengths: Sequence[int],
    ) -> Tensor:
        """The bound, a scalar in nats: 0, with the critic in its graph, where no token of the batch is an anchor.

        Args:
            critic: owns the critic's weights; a submodule of the model, so that they are reduced, saved and clipped
                with it.
            embedded: ``[batch, length, hidden]``.
            sentence: ``[batch, hidden]``.
            grad: ``[batch, length, hidden]``, of the loss with respect to the perturbation.
            attention_mask: ``[batch, length]``.
            lengths: tokens per sentence, known on the host.
        """
        anchors = functional.anchor_indices(grad, attention_mask, self.cl, self.ch, lengths=lengths, validate=False)
        pairs = anchors.shape[0]
        if pairs == 0:
            # A rank whose graph lacks the critic would leave the others waiting for its gradient, and DeepSpeed adds
            # gradients up in the order of their arrival: zero times one pair's bound is the graph of every other rank.
            first = anchors.new_zeros(1)
            return 0 * critic(embedded.flatten(0, 1), sentence, local_index=first, pair_index=first, chunk_size=1)
        chunk_size = None
        if self.negatives == "chunk":
            anchors = anchors[_shuffle(pairs, self.seed, anchors.device)]
            chunk_size = embedded.shape[0]
        rows = embedded.flatten(0, 1)
        return critic(
            rows, sentence, local_index=anchors, pair_index=anchors // embedded.shape[1], chunk_size=chunk_size
        )


@functools.lru_cache(maxsize=256)
def _shuffle(pairs: int, seed: int, device: torch.device) -> Tensor:
    """The reference's permutation of this many pairs: NumPy's legacy generator, reseeded at every step."""
    permutation = np.arange(pairs)
    np.random.RandomState(seed).shuffle(permutation)
    host = torch.from_numpy(permutation)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def _needed(name: str, value: int | None) -> int:
    if value is None:
        raise ValueError(f"`{name}` was None; the learned kinds need it: pass the model's")
    checks.positive_integer(name, value)
    return value
