"""FreeLB's random start from a counter, in PyTorch's integers: the same bits on every device and in the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["counter_uniform", "philox4x32"]

WORD = 0xFFFFFFFF
ROUND = (0xD2511F53, 0xCD9E8D57)
KEY_STEP = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit numbers for each counter of four, all held in int64.

    ``seed`` is the key's two words. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(c0, ROUND[0]), _product(c2, ROUND[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + KEY_STEP[0] & WORD, k1 + KEY_STEP[1] & WORD
    return c0, c1, c2, c3


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Upper and lower word of a product of two 32-bit numbers, by halves of the factor: int64 has a sign."""
    low = x * (factor & 0xFFFF)
    middle = x * (factor >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def counter_uniform(attention_mask: Tensor, sentence_ids: Tensor | None, width: int, seed: int) -> Tensor:
    """float32 ``[batch, length, width]`` in (-1, 1): entry (id, token, channel) of ``seed``, any value at padding.

    Tokens are counted among those of their sentence, whatever padding stands before them. The counter is ``(channel //
    4, token, id, id >> 32)``, channel % 4 chooses among its four numbers; their upper 23 bits k make ``(2 k + 1) 2^-23
    - 1``, which float32 holds exactly.
    """
    device = attention_mask.device
    token = attention_mask.bool().cumsum(1) - 1 & WORD
    if sentence_ids is None:
        sentence_ids = torch.arange(attention_mask.shape[0], device=device)
    sentence = sentence_ids.reshape(-1, 1, 1)
    quads = torch.arange((width + 3) // 4, device=device).reshape(1, 1, -1)
    counter = torch.broadcast_tensors(quads, token.unsqueeze(-1), sentence & WORD, sentence >> 32 & WORD)
    numbers = torch.stack(philox4x32(counter, seed), dim=-1).flatten(2)[..., :width]
    return ((numbers >> 9) * 2 - 0x7FFFFF).to(torch.float32) * 2.0**-23
