"""The whole training job: data, model and trainer from three dataclasses."""

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any, cast

import datasets
import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from infobert_fast.data.answers import AnswerReader
from infobert_fast.data.corpora import by_name, concatenate, load, stream
from infobert_fast.data.mixtures import expand, task_of
from infobert_fast.data.qa import load_questions
from infobert_fast.data.source import FeverOrder, Source
from infobert_fast.data.tasks import QUESTION_ANSWERING, Task, task_named
from infobert_fast.data.tokenization import check_padding, tokenize
from infobert_fast.metrics.glue import glue_scores
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.models.feature import declared_feature
from infobert_fast.training.models.head import head_order, reorder_head, set_labels
from infobert_fast.training.models.perturbation import positions_of
from infobert_fast.training.question_answering import QuestionAnsweringTrainer, QuestionSet
from infobert_fast.training.trainer import InfoBertTrainer

__all__ = ["DataArguments", "ModelArguments", "build_trainer", "train"]

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Which encoder is fine-tuned."""

    model_name_or_path: str = field(
        default="FacebookAI/roberta-large", metadata={"help": "A model's name on the hub, or its folder."}
    )
    hidden_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout of hidden states; the model's own where unset."}
    )
    attention_probs_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout of attention weights; the model's own where unset."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, flash_attention_2, eager, ...; what transformers chooses where unset."}
    )


@dataclass
class DataArguments:
    """What it is trained and evaluated on.

    A source is ``[name=]path[#field][:split]``: a file (.jsonl, .json, .tsv, .csv, each also .gz), a dataset of the
    hub, ``glue/TASK`` or a published mix (``anli-full``, ``anli-part``); in YAML also a mapping with the fields of
    :class:`infobert_fast.data.source.Source`.
    """

    task: str | None = field(
        default=None,
        metadata={
            "help": "nli, nli2 (entailed or not), safety (one text, safe or not), qa (extractive question answering), "
            "or GLUE's cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; by the sources' names where unset, else nli."
        },
    )
    train_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sources to train on, joined in this order; anli-full and anli-part are the published mixes."
        },
    )
    eval_data: list[str] = field(default_factory=list, metadata={"help": "Sources to evaluate on, each by itself."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder from which a published mix reads its corpora; the hub where unset."}
    )
    fever_order: FeverOrder = field(
        default="reference",
        metadata={"help": "FEVER pairs as (claim, evidence), reference, or as (evidence, claim), anli."},
    )
    anli_repeat: list[int] = field(
        default_factory=lambda: [1, 1, 1],
        metadata={"help": "How often a mix repeats ANLI's rounds: 1 1 1 (InfoBERT) or 10 20 10 (the ANLI authors)."},
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Examples drawn at random from each training source; all where unset."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read and tokenize training data as it is needed; requires max_steps."}
    )
    max_length: int = field(
        default=128, metadata={"help": "Longest text, pair or window in tokens; longer ones are cut."}
    )
    preprocessing_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize; one if unset."})
    doc_stride: int = field(default=128, metadata={"help": "Tokens that two windows of a paragraph share (qa)."})
    n_best: int = field(default=20, metadata={"help": "Spans kept a question (qa)."})
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer in tokens (qa)."})
    null_threshold: float | None = field(
        default=None,
        metadata={"help": "Answer nothing where the null score exceeds the best span's by this; never if unset (qa)."},
    )


def build_trainer(model_args: ModelArguments, data_args: DataArguments, args: InfoBertArguments) -> InfoBertTrainer:
    """Read data, tokenizer and model, and put them into a trainer.

    Raises:
        ValueError, OSError: for data, model or arguments that do not fit.
    """
    set_seed(args.seed)
    if not data_args.train_data:
        raise ValueError(
            "`train_data` is empty; name at least one source: a file, or a dataset of the hub with its split"
        )
    task = data_args.task or task_of(data_args.train_data)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    if task == QUESTION_ANSWERING:
        trainer: InfoBertTrainer = _question_answering(model_args, data_args, args, tokenizer)
    else:
        trainer = _classification(model_args, data_args, args, tokenizer, task_named(task))
    left = declared_feature(trainer.model) in ("mean", "last")
    check_padding(tokenizer, "model_name_or_path", left=left)  # of a model that the trainer took
    return trainer


def train(trainer: InfoBertTrainer) -> dict[str, float]:
    """Fine-tune, save to ``output_dir``, evaluate; the metrics by name.

    The folder holds model, critic and tokenizer, opens with transformers' ``from_pretrained``, and keeps the metrics in
    ``all_results.json``.
    """
    metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.log_metrics("all", metrics)
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    return metrics


def _classification(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: InfoBertArguments,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
) -> InfoBertTrainer:
    length, workers = data_args.max_length, data_args.preprocessing_workers
    with args.main_process_first(desc="reading data"):
        sources = _training_sources(data_args, args.seed)
        if data_args.streaming:
            training: Any = tokenize(_streamed(sources, task, args), tokenizer, length, task=task)
        else:
            training = tokenize(concatenate(sources, task), tokenizer, length, workers, task=task)
        evaluation = {
            name: tokenize(load(source, task), tokenizer, length, workers, task=task)
            for name, source in _evaluation_sources(data_args).items()
        }
    config = _config(model_args)
    order, outputs = head_order(config, task), config.num_labels
    set_labels(config, task)
    # In half precision the perturbation would round away; autocast brings the speed back.
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=outputs != config.num_labels,  # a classifier of another task starts anew
    )
    _check_positions(model, length, [training, *evaluation.values()])
    if order is not None and order != sorted(order):
        reorder_head(model, order)
        logger.info("the classifier's outputs were in the order %s of ours; they are in ours now", order)

    def score(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        return glue_scores(task.metrics, logits.argmax(-1) if task.labels else logits[:, 0], labels)

    return InfoBertTrainer(
        model,
        args,
        train_dataset=training,
        eval_dataset=evaluation or None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=score,
    )


def _question_answering(
    model_args: ModelArguments, data_args: DataArguments, args: InfoBertArguments, tokenizer: PreTrainedTokenizerBase
) -> QuestionAnsweringTrainer:
    if data_args.streaming:
        raise ValueError("`streaming` is set; question answering reads its paragraphs whole: leave it out")
    settings = {
        "max_length": data_args.max_length,
        "doc_stride": data_args.doc_stride,
        "num_proc": data_args.preprocessing_workers,
    }
    with args.main_process_first(desc="reading data"):
        loaded = [load_questions(source) for source in _training_sources(data_args, args.seed)]
        training = QuestionSet.cut(datasets.concatenate_datasets(loaded), tokenizer, **settings)
        evaluation = {
            name: QuestionSet.cut(load_questions(source), tokenizer, **settings)
            for name, source in _evaluation_sources(data_args).items()
        }
    model = AutoModelForQuestionAnswering.from_pretrained(
        model_args.model_name_or_path, config=_config(model_args), dtype=torch.float32
    )
    _check_positions(model, data_args.max_length, [training.windows, *(part.windows for part in evaluation.values())])
    return QuestionAnsweringTrainer(
        model,
        args,
        train_dataset=training.windows,
        eval_questions=evaluation,
        reader=AnswerReader(data_args.n_best, data_args.max_answer_length, data_args.null_threshold),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def _check_positions(model: PreTrainedModel, max_length: int, parts: list[Any]) -> None:
    """Refuse tokens beyond the model's last position, which on a device would be an assertion without a name."""
    reach = positions_of(model)
    if reach is None or max_length <= reach:
        return
    # A stream does not tell how long its texts are, and is taken at its word.
    longest = max((max(part["length"]) for part in parts if isinstance(part, datasets.Dataset)), default=0)
    if longest > reach:
        raise ValueError(
            f"`max_length` was {max_length}, and the longest input takes {longest} tokens; the model has positions for "
            f"{reach}: set `max_length` to {reach} at most"
        )


def _training_sources(data_args: DataArguments, seed: int) -> list[Source]:
    sources = expand(
        data_args.train_data,
        data_dir=data_args.data_dir,
        fever_order=data_args.fever_order,
        anli_repeat=data_args.anli_repeat,
    )
    if data_args.train_limit is None:
        return sources
    if data_args.streaming:
        raise ValueError(
            f"`train_limit` was {data_args.train_limit} with `streaming`; of a stream no examples can be drawn at "
            f"random: give the source a `limit`, which takes its first ones, or leave `streaming` out"
        )
    return [_limited(source, data_args.train_limit, seed) for source in sources]


def _evaluation_sources(data_args: DataArguments) -> dict[str, Source]:
    folder, order = data_args.data_dir, data_args.fever_order
    return by_name(expand(data_args.eval_data, data_dir=folder, fever_order=order, evaluation=True))


def _streamed(sources: list[Source], task: Task, args: InfoBertArguments) -> datasets.IterableDataset:
    if args.max_steps < 1:
        raise ValueError("`streaming` is set and `max_steps` is not; a stream has no length: set max_steps")
    # Lengths travel as lists, which rank 0 could not send; accelerate gives each rank its own part of the stream.
    cast(Any, args.accelerator_config).dispatch_batches = False
    joined = datasets.concatenate_datasets([stream(source, task) for source in sources])
    return joined.shuffle(seed=args.seed, buffer_size=10_000)


def _limited(source: Source, limit: int, seed: int) -> Source:
    """At most ``limit`` examples, drawn with ``seed`` where the source has none of its own."""
    return dataclasses.replace(
        source, limit=min(limit, source.limit or limit), seed=seed if source.seed is None else source.seed
    )


def _config(model_args: ModelArguments) -> PreTrainedConfig:
    """The model's configuration with the dropout that was asked for."""
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path, attn_implementation=model_args.attn_implementation
    )
    for name, value in dataclasses.asdict(model_args).items():
        if name.endswith("_prob") and value is not None:
            if not hasattr(config, name):
                raise ValueError(
                    f"`{name}` was {value}, but a {type(config).__name__} calls its dropout otherwise: set it in the "
                    f"model's config.json and leave `{name}` unset"
                )
            setattr(config, name, value)
    return config
