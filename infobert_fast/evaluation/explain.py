"""Which tokens a fine-tuned model finds useless, robust or non-robust: InfoBERT's anchors, to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast import checks, functional
from infobert_fast.evaluation.batches import padded_batches
from infobert_fast.training.models.perturbation import WordEmbeddings

__all__ = ["KINDS", "Explanation", "Kind", "Token", "explain", "label_names"]

Kind = Literal["useless", "anchored", "non-robust"]
KINDS: tuple[Kind, ...] = ("useless", "anchored", "non-robust")
WORD_BEGINS = ("Ġ", "▁")  # byte-level BPE's and SentencePiece's mark of a space before a token


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Args:
        text: as the text has it, without the space before it; the token's own name where it is special.
        kind: by the rank of its gradient norm within its text.
        norm: the gradient norm over the largest of its text, 0 to 1.
        space: whether a space lies before it.
        part: 0 or 1, the text of a pair that it belongs to; None for special tokens.
    """

    text: str
    kind: Kind
    norm: float
    space: bool
    part: int | None


@dataclass(frozen=True)
class Explanation:
    """The tokens of a text or pair, the label whose loss was differentiated, and what the model says."""

    tokens: list[Token]
    parts: int  # texts: 1, or 2 for a pair
    label: str
    given: bool  # whether the label was given, rather than the model's own prediction
    prediction: str
    probability: float


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[int | None] | None = None,
    *,
    cl: float = 0.5,
    ch: float = 0.9,
    max_length: int = 128,
    batch_tokens: int = 16_384,
) -> list[Explanation]:
    """Rank the tokens of each text by the norm of the gradient of the task loss, as training ranks them.

    The gradient is ``d loss / d delta`` at ``delta = 0``: of the cross-entropy of the label, with respect to the word
    embeddings, without dropout. Training adds ``beta`` times the information bottleneck to that loss, perturbs and
    drops out, so that single tokens near a border may fall on its other side there. Of the n tokens of a text, special
    ones included, ranks below ``ceil(n cl)`` are useless, ranks from ``ceil(n ch)`` on non-robust, and those between
    anchored.

    Args:
        model: a classifier with at least two labels.
        texts: a tuple of one text, or of two for a pair, each; longer ones lose tokens at ``max_length``.
        labels: for each text the index of the model's output whose loss is taken; where None, its prediction's.
        cl, ch: the anchor window.
        batch_tokens: tokens per batch, padding included.

    Raises:
        ValueError: for a regression model, labels that it does not have, another number of labels than texts, an
            empty text, or a gradient that is not finite.
    """
    checks.anchor_window(cl, ch)
    names = label_names(model)
    labels = [None] * len(texts) if labels is None else labels
    if len(labels) != len(texts):
        raise ValueError(f"`labels` holds {len(labels)} entries and `texts` {len(texts)}; give one for each text")
    for number, (parts, label) in enumerate(zip(texts, labels, strict=True), 1):
        if not all(part.strip() for part in parts):
            raise ValueError(f"text {number} is {parts!r}, in which one is empty: leave it out")
        if label is not None and not 0 <= label < len(names):
            raise ValueError(f"label {number} was {label}; the model has 0 to {len(names) - 1}, {', '.join(names)}")
    encoded = [tokenizer(*parts, truncation=True, max_length=max_length) for parts in texts]
    found: list[Explanation | None] = [None] * len(texts)
    lengths = [len(one["input_ids"]) for one in encoded]
    for indices, padded in padded_batches(model, tokenizer, encoded, lengths, batch_tokens):
        logits, grad, used = _gradient(model, padded, [labels[i] for i in indices])
        ranked = _rank(grad, padded["attention_mask"], cl, ch)
        rows = zip(indices, logits.softmax(-1).tolist(), used.tolist(), *ranked, strict=True)
        for i, probabilities, label, norms, kinds in rows:
            if not math.isfinite(sum(norms)):
                raise ValueError(f"text {i + 1}, {texts[i]!r}, has a gradient that is not finite: check the model")
            best = max(range(len(names)), key=probabilities.__getitem__)
            found[i] = Explanation(
                _tokens(tokenizer, texts[i], encoded[i], norms, kinds),
                len(texts[i]),
                names[label],
                labels[i] is not None,
                names[best],
                probabilities[best],
            )
    return [explanation for explanation in found if explanation is not None]


def label_names(model: PreTrainedModel) -> list[str]:
    """Names of a classifier's outputs. Raises ``ValueError`` where only one exists, or several may hold at once."""
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    if len(names) < 2 or model.config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"`model` has {len(names)} label(s) and `problem_type` {model.config.problem_type!r}; the loss that ranks "
            f"tokens is a classifier's: use one of at least two labels, one of which holds"
        )
    return names


def _gradient(model: PreTrainedModel, batch: Any, labels: list[int | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, ``d loss / d delta`` at zero, and the labels used; a sum, so that no text scales another's gradient."""
    words, mask = WordEmbeddings(model), batch["attention_mask"]
    delta = words.zeros(mask.shape, mask.device).requires_grad_()
    try:
        with torch.enable_grad(), words.shifted(delta):
            logits = model(**batch).logits.float()
            given = torch.tensor([-1 if label is None else label for label in labels], device=logits.device)
            used = torch.where(given < 0, logits.argmax(-1), given)
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, used, reduction="sum"), delta)
    finally:
        words.remove()
    return logits.detach(), grad, used


def _rank(grad: Tensor, mask: Tensor, cl: float, ch: float) -> tuple[list[list[float]], list[list[Kind]]]:
    """Of each text's tokens, padding left out, the relative norms and the kinds."""
    norms = torch.linalg.vector_norm(grad.double(), dim=-1) * mask
    relative = norms / norms.max(dim=1, keepdim=True).values.clamp_min(torch.finfo(norms.dtype).tiny)
    windows = torch.stack(
        [functional.select_anchors(grad, mask, low, high) for low, high in ((0.0, cl), (cl, ch), (ch, 1.0))]
    )
    kept = [row.bool() for row in mask.cpu()]
    kinds = windows.int().argmax(0).cpu()
    return (
        [row[keep].tolist() for row, keep in zip(relative.cpu(), kept, strict=True)],
        [[KINDS[kind] for kind in row[keep].tolist()] for row, keep in zip(kinds, kept, strict=True)],
    )


def _tokens(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], encoded: Any, norms: list[float], kinds: list[Kind]
) -> list[Token]:
    """Tokens as the text has them. Their own spelling is a tokenizer's affair: lower case, `##`, bytes."""
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    tokens: list[Token] = []
    if not tokenizer.is_fast:  # which alone know where a token lies in its text
        special = tokenizer.get_special_tokens_mask(encoded["input_ids"], already_has_special_tokens=True)
        part, was_special = 0, True
        for name, kind, norm, flag in zip(names, kinds, norms, special, strict=True):
            part += bool(flag) and not was_special
            was_special = bool(flag)
            piece = name.removeprefix("##").lstrip("".join(WORD_BEGINS))
            begins = name.startswith(WORD_BEGINS)
            tokens.append(Token(piece, kind, norm, begins, None if flag else min(part, len(texts) - 1)))
        return tokens
    end = 0
    encoding = encoded.encodings[0]
    for name, part, (start, stop), kind, norm in zip(
        names, encoding.sequence_ids, encoding.offsets, kinds, norms, strict=True
    ):
        if part is None:
            tokens.append(Token(name, kind, norm, True, None))
            end = 0
            continue
        piece = texts[part][max(start, end) : stop]
        space = texts[part][end:start].isspace() or piece[:1].isspace()
        # A token may hold a part of a character's bytes, the rest of which is in the tokens before.
        tokens.append(Token(piece.strip() or "·", kind, norm, space, part))
        end = max(end, stop)
    return tokens
