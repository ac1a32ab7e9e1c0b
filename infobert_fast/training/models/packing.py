"""A stock model's encoder stack, run on packed rows: two hooks around it, and nothing of the model changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infobert_fast.data.packing import Packing, pack_sentences

__all__ = ["PackedEncoder", "unpack"]


class PackedEncoder:
    """Packs hidden states before a model's encoder stack and unpacks them after it.

    The embedding block before it and the head after it see the padded batch, positions included, so that neither has
    to know. Within the stack, the layers see rows of several sentences and a mask that lets a token attend to its own
    sentence alone. At padding the unpacked states are zero.

    Raises:
        ValueError: for a model without a stack (``encoder`` or ``transformer``), or an attention other than ``sdpa``
            and ``eager``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base = model.base_model
        stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
        if not isinstance(stack, nn.Module):
            raise ValueError(
                f"`packing` was True; a {type(model).__name__} has no `encoder` or `transformer` that could be packed: "
                f"leave it False, and use `batch_tokens` against padding"
            )
        self._attention = model.config._attn_implementation
        if self._attention not in ("sdpa", "eager"):
            raise ValueError(
                f"`packing` was True with `attn_implementation` {self._attention!r}, to which its mask is unknown: use "
                f"'sdpa'"
            )
        self._packing: Packing | None = None
        self._hooks = [
            stack.register_forward_pre_hook(self._pack, with_kwargs=True),
            stack.register_forward_hook(self._unpack),
        ]

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

    def check(self, model: PreTrainedModel, inputs: Mapping[str, Any], tolerance: float = 1e-4) -> None:
        """Compare packed and padded logits of a few sentences, without dropout; mode and random state stay.

        Raises:
            ValueError: where they differ, or the head predicts for tokens instead of the sentence: something outside
                the stack looks at its insides or at padding, or a layer looks across the row.
        """
        few = {name: value[:4] for name, value in inputs.items() if isinstance(value, Tensor) and name != "labels"}
        mask = few["attention_mask"]
        packing = pack_sentences(mask.sum(1).tolist(), mask.shape[1])
        packing = Packing(*(index.to(mask.device) for index in packing))
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                padded = model(**few)
                with self.rows(packing):
                    packed = model(**few)
        finally:
            model.train(training)
        one, other = padded.get("logits"), packed.get("logits")
        same = one is not None and one.shape == other.shape
        if not same or not float((one - other).abs().max()) <= tolerance * max(1.0, float(one.abs().max())):
            raise ValueError(
                f"`packing` was True; a {type(model).__name__} does not give the same logits packed as padded, or none "
                f"for a sentence: leave it False, and use `batch_tokens` against padding"
            )

    def _pack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._packing is None:
            return None
        source, sentence, _ = self._packing
        names = ("hidden_states", "attention_mask")  # an encoder stack's first two arguments
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden = given["hidden_states"]
        packed = hidden.flatten(0, 1).index_select(0, source.flatten()).unflatten(0, source.shape)
        mask = sentence[:, None, :, None] == sentence[:, None, None, :]
        if self._attention == "eager":
            mask = packed.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(packed.dtype).min)
        given |= {"hidden_states": packed, "attention_mask": mask}
        if "position_ids" in given:  # those of the padded batch, which the embeddings hold already
            given["position_ids"] = None
        return args[len(names) :], given

    def _unpack(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._packing is None:
            return None
        output[0 if isinstance(output, tuple) else "last_hidden_state"] = unpack(self._packing, output[0])
        return output


def unpack(packing: Packing, hidden: Tensor) -> Tensor:
    """``[rows, capacity, hidden]`` to ``[batch, length, hidden]``, zero at padding."""
    place = packing.place
    padded = hidden.flatten(0, 1).index_select(0, place.flatten().clamp(min=0)).unflatten(0, place.shape)
    return padded * (place >= 0).unsqueeze(-1)
