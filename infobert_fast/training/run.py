"""The whole training job: data, model and trainer from three dataclasses."""

import dataclasses
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    set_seed,
)

from infobert_fast.data.corpora import Source, concatenate, load_many
from infobert_fast.data.labels import LABELS
from infobert_fast.data.tokenization import tokenize
from infobert_fast.training.arguments import InfoBertArguments
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


@dataclass
class DataArguments:
    """What it is trained and evaluated on.

    A source is ``[name=]path[#field][:split]``: a file (.jsonl, .json, .tsv, .csv, each also .gz) or a dataset of the
    hub; in YAML also a mapping with the fields of :class:`infobert_fast.data.corpora.Source`.
    """

    train_data: list[str] = field(default_factory=list, metadata={"help": "Sources to train on, joined in this order."})
    eval_data: list[str] = field(default_factory=list, metadata={"help": "Sources to evaluate on, each by itself."})
    train_limit: int | None = field(
        default=None, metadata={"help": "Examples drawn at random from each training source; all where unset."}
    )
    max_length: int = field(default=128, metadata={"help": "Longest pair in tokens; longer ones are cut."})
    preprocessing_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize; one if unset."})


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
    name = model_args.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name)
    with args.main_process_first(desc="reading data"):
        sources = [Source.parse(source) for source in data_args.train_data]
        if data_args.train_limit is not None:
            sources = [_limited(source, data_args.train_limit, args.seed) for source in sources]
        joined = concatenate(sources)
        training = tokenize(joined, tokenizer, data_args.max_length, data_args.preprocessing_workers)
        evaluation = {
            key: tokenize(dataset, tokenizer, data_args.max_length, data_args.preprocessing_workers)
            for key, dataset in load_many(data_args.eval_data).items()
        }
    config = _config(model_args)
    # In half precision the perturbation would round away; autocast brings the speed back.
    model = AutoModelForSequenceClassification.from_pretrained(name, config=config, dtype=torch.float32)
    return InfoBertTrainer(
        model,
        args,
        train_dataset=training,
        eval_dataset=evaluation or None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy,
    )


def train(trainer: InfoBertTrainer) -> dict[str, float]:
    """Fine-tune, save to ``output_dir``, evaluate; the metrics by name.

    The folder holds model, critic and tokenizer, opens with ``AutoModelForSequenceClassification.from_pretrained``, and
    keeps the metrics in ``all_results.json``.
    """
    metrics = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint).metrics
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.log_metrics("all", metrics)
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    return metrics


def _limited(source: Source, limit: int, seed: int) -> Source:
    """At most ``limit`` examples, drawn with ``seed`` where the source has none of its own."""
    return dataclasses.replace(
        source, limit=min(limit, source.limit or limit), seed=seed if source.seed is None else source.seed
    )


def _config(model_args: ModelArguments) -> PreTrainedConfig:
    """The model's configuration with our three labels and the dropout that was asked for."""
    config = AutoConfig.from_pretrained(model_args.model_name_or_path)
    for name, value in dataclasses.asdict(model_args).items():
        if name.endswith("_prob") and value is not None:
            if not hasattr(config, name):
                raise ValueError(
                    f"`{name}` was {value}, but a {type(config).__name__} calls its dropout otherwise: set it in the "
                    f"model's config.json and leave `{name}` unset"
                )
            setattr(config, name, value)
    found = [str(label).lower() for _, label in sorted((config.id2label or {}).items())]
    if sorted(found) == sorted(LABELS) and found != list(LABELS):
        logger.warning("the model's labels are in the order %s; it is trained on anew in the order %s", found, LABELS)
    config.num_labels = len(LABELS)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {word: i for i, word in enumerate(LABELS)}
    return config


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}
