"""What a batch of sentences carries besides its tokens: lengths, known on the host, and where to pack them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from infobert_fast import checks
from infobert_fast.data.packing import pack_sentences

__all__ = ["WithLengths"]


class WithLengths:
    """A collator that adds ``lengths``, the tokens of each sentence, as a list on the host, and checks the mask there.

    Anchors are counted from lengths: taken here, before the batch leaves for the device, nothing waits for it later.
    With ``packing`` the batch also gets its :class:`infobert_fast.data.packing.Packing`, as a dictionary.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], packing: bool = False) -> None:
        self.collator, self.packing = collator, packing

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self.collator(examples))
        if "input_ids" not in batch:
            raise ValueError(
                f"the batch holds {sorted(batch)} and no `input_ids`; the perturbation needs the tokens: add them"
            )
        if "attention_mask" not in batch:
            raise ValueError(f"the batch holds {sorted(batch)} and no `attention_mask`, which tells padding: add it")
        mask = batch["attention_mask"]
        checks.attention_mask(mask, tuple(batch["input_ids"].shape[:2]))
        if not bool(mask[:, 0].all()):
            raise ValueError(
                "a sentence of the batch begins with padding; its first hidden state, which stands for the sentence, "
                "would be that of padding: set tokenizer.padding_side = 'right'"
            )
        batch["lengths"] = mask.to(torch.int64).sum(dim=1).tolist()
        if self.packing:
            batch["packing"] = pack_sentences(batch["lengths"], mask.shape[1])._asdict()
        return batch
