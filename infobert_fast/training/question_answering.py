"""Question answering for the trainer: start and end of the answer in each window, scored as SQuAD scores answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
from torch.utils.data import Sampler, SequentialSampler
from transformers import EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from infobert_fast.data.answers import AnswerReader
from infobert_fast.data.qa import windows
from infobert_fast.metrics.squad import squad_scores
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.trainer import InfoBertTrainer

__all__ = ["QuestionAnsweringTrainer", "QuestionSet"]


@dataclass(frozen=True)
class QuestionSet:
    """Questions and the windows cut from their paragraphs."""

    questions: datasets.Dataset
    windows: datasets.Dataset

    @classmethod
    def cut(cls, questions: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> QuestionSet:
        """As :func:`infobert_fast.data.qa.windows`."""
        return cls(questions, windows(questions, tokenizer, **settings))


class QuestionAnsweringTrainer(InfoBertTrainer):
    """The trainer for models with a start and an end logit per token (``AutoModelForQuestionAnswering``).

    The task loss is the mean of the start's and the end's cross-entropy over a window's positions; everything else is
    :class:`InfoBertTrainer`: anchors are chosen among all tokens of question and paragraph, and each is paired with the
    first token's last hidden state. Evaluation reads an answer for each question and reports ``exact_match`` and
    ``f1`` in percent, of the worst variant where questions have adversarial variants.

    Args:
        eval_questions: evaluation sets by name.
        reader: how answers are read from logits.
    """

    def __init__(
        self,
        model: Any = None,
        args: InfoBertArguments | None = None,
        *,
        eval_questions: Mapping[str, QuestionSet],
        reader: AnswerReader | None = None,
        **kwargs: Any,
    ) -> None:
        self._questions = dict(eval_questions)
        self._reader = AnswerReader() if reader is None else reader
        self._evaluated = ""
        sets = {name: part.windows for name, part in self._questions.items()}
        super().__init__(model, args, eval_dataset=sets or None, compute_metrics=self._score, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As the Trainer's; remembers which set is being evaluated."""
        self._evaluated = metric_key_prefix.removeprefix("eval_")
        return super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        """In order, as the answers are read; the Trainer's groups by length where training does."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _score(self, prediction: EvalPrediction) -> dict[str, float]:
        part = self._questions[self._evaluated]
        logits: Any = prediction.predictions
        answers = self._reader.read(part.questions, part.windows, logits[0], logits[1])
        right = dict(zip(part.questions["id"], (row["text"] for row in part.questions["answers"]), strict=True))
        scores = squad_scores(right, answers.predictions)
        return {"exact_match": scores.em, "f1": scores.f1}
