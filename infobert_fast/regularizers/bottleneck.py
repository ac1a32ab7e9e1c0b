"""The information bottleneck: features should keep little of the input that the label does not ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infobert_fast import checks, functional
from infobert_fast.estimators import CLUB
from infobert_fast.regularizers.versions import VERSIONS, Kind

__all__ = ["InformationBottleneck", "Partners", "Sampling"]

Sampling = Literal["exact", "sampled"]
Partners = Literal["batch", "all"]


class InformationBottleneck(nn.Module):
    """Upper bound on the information that features keep of the input; add ``beta`` times it to the loss.

    ============== ======= ====================================================================================
    kind           version bound
    ============== ======= ====================================================================================
    tokens         3, 6    CLUBv2 over the rows of the embedding block's output at tokens (the paper)
    sentence       2, 5    CLUBv2 over the sentence features
    learned-tokens 1       CLUB between embedding row and last hidden state, over tokens (padding left out)
    learned-flat   0       CLUB between the whole embedding layer, zero-padded to ``max_length``, and the sentence
    ============== ======= ====================================================================================

    Args:
        kind: as above.
        sampling: ``"exact"`` averages over every partner, ``"sampled"`` draws one (the reference).
        partners: a row's partners are those of this ``"batch"``, or of the batches of ``"all"`` ranks (kinds tokens
            and sentence, exactly sampled), see :mod:`infobert_fast.functional.ranks`; of the batch too where no
            process group is initialised.
        hidden_size, max_length: for the learned kinds, whose network ``club`` has its own optimiser and must not be
            given to another.
        average: let the learned kinds average their likelihood gradient over all ranks.
    """

    def __init__(
        self,
        kind: Kind = "tokens",
        sampling: Sampling = "exact",
        partners: Partners = "batch",
        *,
        hidden_size: int | None = None,
        max_length: int | None = None,
        average: bool = False,
    ) -> None:
        super().__init__()
        checks.choice("kind", kind, [k for k in dict.fromkeys(VERSIONS.values()) if k])
        checks.choice("ib_sampling", sampling, ("exact", "sampled"))
        checks.choice("ib_partners", partners, ("batch", "all"))
        if partners == "all" and (kind not in ("tokens", "sentence") or sampling == "sampled"):
            raise ValueError(
                f"`ib_partners` was 'all' with the {sampling} {kind} bound; over all ranks there are the exact ones on "
                f"tokens and sentences: use `version` 2, 3, 5 or 6 and `ib_sampling` 'exact', or 'batch'"
            )
        self.kind, self.sampling, self.partners, self.average = kind, sampling, partners, average
        self.club: CLUB | None = None
        if kind in ("learned-flat", "learned-tokens"):
            hidden_size = _needed("hidden_size", hidden_size)
            self.max_length = _needed("max_length", max_length) if kind == "learned-flat" else 1
            self.club = CLUB(self.max_length * hidden_size, hidden_size)

    @property
    def over_ranks(self) -> bool:
        """Whether the bound is that of all ranks' rows."""
        return self.partners == "all" and dist.is_initialized()

    def forward(
        self,
        embedded: Tensor,
        last_hidden: Tensor,
        attention_mask: Tensor,
        lengths: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        sentence: Tensor | None = None,
    ) -> Tensor:
        """The bound, a scalar in nats.

        Args:
            embedded, last_hidden: ``[batch, length, hidden]``, the embedding block's output and the encoder's.
            attention_mask: ``[batch, length]``.
            lengths: tokens per sentence, known on the host.
            generator: draws the partners of ``"sampled"``, on the device of the states.
            sentence: ``[batch, hidden]``, the sentence feature; the first hidden state where None.
        """
        sentence = last_hidden[:, 0] if sentence is None else sentence
        if self.kind in ("tokens", "sentence"):
            rows, mask = (embedded, attention_mask) if self.kind == "tokens" else (sentence, None)
            if self.over_ranks:
                return functional.club_over_ranks(rows, mask)
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
            kept = embedded * attention_mask.unsqueeze(-1).to(embedded.dtype)
            # Tokens first, wherever the padding lies: the network knows a token by its place in the sentence.
            tokens_first = torch.argsort(attention_mask == 0, dim=1, stable=True).unsqueeze(-1)
            kept = kept.gather(1, tokens_first.expand_as(kept))
            x, y = nn.functional.pad(kept, (0, 0, 0, short)).flatten(1), sentence
        else:
            rows = torch.argsort(attention_mask.flatten() == 0, stable=True)[: sum(lengths)]
            x, y = embedded.flatten(0, 1)[rows], last_hidden.flatten(0, 1)[rows]
        self.club.fit_step(x.detach(), y.detach(), average=self.average)
        return self.club.frozen_estimate(x, y, sampled=self.sampling == "sampled", generator=generator)


def _needed(name: str, value: int | None) -> int:
    if value is None:
        raise ValueError(f"`{name}` was None; the learned kinds need it: pass the model's")
    checks.positive_integer(name, value)
    return value
