"""What a batch of sentences carries besides its tokens: what is known of it on the host, and where to pack it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from infobert_fast import checks
from infobert_fast.data.packing import pack_sentences

__all__ = ["WithLengths"]


class WithLengths:
    """A collator that adds to a batch what the host must know of it, and checks the mask there.

    ``lengths`` are the tokens of each sentence, as a list; ``left_padded`` says whether a sentence begins with padding.
    Both are taken here, before the batch leaves for the device, so that nothing waits for it later. With ``packing``
    the batch also gets its :class:`infobert_fast.data.packing.Packing`, as a dictionary.

    Raises:
        ValueError: for a batch without ids or mask, a mask that is none, or padding on the left with ``packing``.
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
        batch["left_padded"] = not bool(mask[:, 0].all())
        batch["lengths"] = mask.to(torch.int64).sum(dim=1).tolist()
        if self.packing:
            if batch["left_padded"]:
                raise ValueError(
                    "`packing` was True for a batch whose sentences begin with padding; it takes them from the left: "
                    "set tokenizer.padding_side = 'right'"
                )
            batch["packing"] = pack_sentences(batch["lengths"], mask.shape[1])._asdict()
        return batch
