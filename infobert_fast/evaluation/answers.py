"""Answers of a fine-tuned question-answering model on clean and adversarial questions, and their scores."""

from __future__ import annotations

from collections.abc import Mapping

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from infobert_fast.data.answers import AnswerReader, Answers
from infobert_fast.data.qa import windows
from infobert_fast.evaluation.batches import padded_batches
from infobert_fast.metrics.squad import SquadScores, squad_scores

__all__ = ["answer", "score_answers"]


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: datasets.Dataset,
    *,
    reader: AnswerReader | None = None,
    max_length: int = 384,
    doc_stride: int = 128,
    batch_tokens: int = 16_384,
    name: str = "",
) -> Answers:
    """The model's answer to each question; see :class:`infobert_fast.data.answers.AnswerReader` for how it is read.

    Raises:
        ValueError: for a model without start and end logits, a slow tokenizer, or lengths that leave no room.
    """
    if not type(model).__name__.endswith("ForQuestionAnswering"):
        raise ValueError(f"the model is a {type(model).__name__}; it must answer questions: train with --task qa")
    cut = windows(questions, tokenizer, max_length, doc_stride)
    inputs = cut.select_columns([key for key in cut.column_names if key in ("input_ids", "token_type_ids")])
    lengths = list(cut["length"])
    start: list[np.ndarray] = [np.empty(0)] * len(cut)
    end: list[np.ndarray] = [np.empty(0)] * len(cut)
    for indices, batch in padded_batches(model, tokenizer, inputs, lengths, batch_tokens, name=name):
        outputs = model(**batch)
        rows = torch.stack([outputs.start_logits, outputs.end_logits]).float().cpu().numpy()
        for row, i in enumerate(indices):
            start[i], end[i] = rows[0, row, : lengths[i]], rows[1, row, : lengths[i]]
    return (reader or AnswerReader()).read(questions, cut, start, end)


def score_answers(questions: datasets.Dataset, predictions: Mapping[str, str]) -> SquadScores:
    """:func:`infobert_fast.metrics.squad.squad_scores` against a loaded set of questions."""
    right = dict(zip(questions["id"], (row["text"] for row in questions["answers"]), strict=True))
    return squad_scores(right, predictions)
