"""A stock model's encoder stack, run on packed rows: hooks around it, and nothing of the model changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from infobert_fast.data.packing import Packing
from infobert_fast.training.models.stock import stock_of

__all__ = ["PackedEncoder", "unpack"]


class PackedEncoder:
    """Packs hidden states before a model's encoder stack and unpacks them after it.

    The embedding block before it and the head after it see the padded batch, so that neither has to know. Within the
    stack, the layers see rows of several sentences and a mask that lets a token attend to its own sentence alone. At
    padding the unpacked states are zero. A stack is a module of its own (``encoder`` or ``transformer``), or
    ModernBERT's ``layers`` between ``embeddings`` and ``final_norm``: its masks, full and sliding, and its rotary
    positions, counted within each sentence, are handed to the model.

    Raises:
        ValueError: for a model without such a stack, or an attention other than ``sdpa`` and ``eager``.
    """

    def __init__(self, model: Any) -> None:
        self._attention = model.config._attn_implementation
        if self._attention not in ("sdpa", "eager"):
            raise ValueError(
                f"`packing` was True with `attn_implementation` {self._attention!r}, to which its mask is unknown: use "
                f"'sdpa'"
            )
        self._packing: Packing | None = None
        self.precision = torch.float32  # in which the stack multiplied when it was last run packed
        base: Any = stock_of(model).base_model
        stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
        if isinstance(stack, nn.Module):
            self._hooks = [
                stack.register_forward_pre_hook(self._pack, with_kwargs=True),
                stack.register_forward_hook(self._unpack),
            ]
        elif model.config.model_type == "modernbert":
            self._config = model.config
            self._hooks = [
                base.register_forward_pre_hook(self._tell, with_kwargs=True),
                base.embeddings.register_forward_hook(self._pack_embedded),
                base.final_norm.register_forward_hook(self._unpack_normed),
            ]
        else:
            raise ValueError(
                f"`packing` was True; a {type(model).__name__} has no `encoder` or `transformer` that could be packed: "
                f"leave it False, and use `batch_tokens` against padding"
            )

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def rows(self, packing: Packing | None) -> Iterator[None]:
        """Within this context the stack runs packed; with None, as ever."""
        self._packing = packing
        try:
            yield
        finally:
            self._packing = None

    # A stack of its own.

    def _pack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._packing is None:
            return None
        names = ("hidden_states", "attention_mask")  # an encoder stack's first two arguments
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden = self._in_rows(given["hidden_states"])
        given |= {"hidden_states": hidden, "attention_mask": self._mask(_together(self._packing), hidden.dtype)}
        if "position_ids" in given:  # those of the padded batch, which the embeddings hold already
            given["position_ids"] = None
        return args[len(names) :], given

    def _unpack(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._packing is None:
            return None
        output[0 if isinstance(output, tuple) else "last_hidden_state"] = unpack(self._packing, output[0])
        return output

    # ModernBERT.

    def _tell(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Masks by kind of layer and positions within sentences, in the place of the padded batch's."""
        if self._packing is None:
            return None
        source, _, place = self._packing
        together, dtype = _together(self._packing), next(module.parameters()).dtype
        column = torch.arange(source.shape[1], device=source.device)
        near = (column[:, None] - column).abs() <= self._config.sliding_window
        masks = {
            "full_attention": self._mask(together, dtype),
            "sliding_attention": self._mask(together & near, dtype),
        }
        return args, {**kwargs, "attention_mask": masks, "position_ids": source % place.shape[1]}

    def _pack_embedded(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return None if self._packing is None else self._in_rows(output)

    def _unpack_normed(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return None if self._packing is None else unpack(self._packing, output)

    def _in_rows(self, hidden: Tensor) -> Tensor:
        assert self._packing is not None
        source, device = self._packing.source, hidden.device.type
        self.precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        return hidden.flatten(0, 1).index_select(0, source.flatten()).unflatten(0, source.shape)

    def _mask(self, allowed: Tensor, dtype: torch.dtype) -> Tensor:
        if self._attention == "sdpa":
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )


def unpack(packing: Packing, hidden: Tensor) -> Tensor:
    """``[rows, capacity, hidden]`` to ``[batch, length, hidden]``, zero at padding."""
    place = packing.place
    padded = hidden.flatten(0, 1).index_select(0, place.flatten().clamp(min=0)).unflatten(0, place.shape)
    return padded * (place >= 0).unsqueeze(-1)


def _together(packing: Packing) -> Tensor:
    """``[rows, 1, capacity, capacity]``: are two places of a row of one sentence?"""
    return packing.sentence[:, None, :, None] == packing.sentence[:, None, None, :]
