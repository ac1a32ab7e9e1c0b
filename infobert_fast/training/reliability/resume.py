"""Which checkpoint a run goes on from, and whether it may: a resumed run is the uninterrupted one or it is refused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sized
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel

from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.engines.ready import ENGINES_ARGUMENTS
from infobert_fast.training.reliability import checkpoints
from infobert_fast.training.steps.replay import RandomReplay

__all__ = ["find_checkpoint", "frozen_digest", "run_record"]

logger = logging.getLogger(__name__)

# Arguments on which the parameters do not depend, by the reason. Every other one, ours or transformers', is recorded.
# fmt: off
FREE: dict[str, tuple[str, ...]] = {
    "where a run writes, and what it is called": (
        "output_dir", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
        "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
        "hub_revision",
    ),
    "what is shown and measured": (
        "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node",
        "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "debug",
        "skip_memory_metrics", "peak_tflops", "profile_regularizers",
    ),
    "an evaluation leaves the training as it was": (
        "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only",
        "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps",
        "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "load_best_model_at_end",
        "metric_for_best_model", "greater_is_better", "do_train", "do_eval", "do_predict",
    ),
    "when and how checkpoints are written and read": (
        "save_only_model", "save_strategy", "save_steps", "save_on_each_node", "save_total_limit",
        "enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "resume_from_checkpoint",
        "resume_with_changes", "critic_checkpoint",
    ),
    "the record names the engine, the ranks and the device itself": (
        *ENGINES_ARGUMENTS, "local_rank", "use_cpu",
    ),
    "how batches arrive, and not which": (
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order",
    ),
    "the same values in less memory": (
        "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "torch_empty_cache_steps",
    ),
    "what happens at a fault": ("nonfinite",),
}
# fmt: on
PROBES = 32  # examples read to tell one dataset from another; of a frozen weight about as many values
ORIGINS = ("base_model_name_or_path", "auto_mapping", "inference_mode", "revision", "peft_version")


def run_record(
    args: InfoBertArguments,
    model: PreTrainedModel,
    model_class: str,
    dataset: Any,
    engine: str,
    base: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint's manifest says of its run: ``run``, on which the results depend, and ``environment``, on which
    their last bits may. ``model_class`` is the model's class before an engine wrapped it, ``base``
    :func:`frozen_digest` of the model.
    """
    settings = args.to_dict()
    free = {name for names in FREE.values() for name in names}
    config = json.loads(model.config.to_json_string(use_diff=False))
    # Where it came from, and what the first forward, the first save and (of the tokenizer) the Trainer's start fill in.
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    for name in ("_name_or_path", "transformers_version", "dtype", "architectures", "problem_type", *tokens):
        config.pop(name, None)
    record = {
        "resumable": not args.save_only_model,
        "run": {
            "world_size": args.world_size,
            "engine": engine,
            "arguments": {name: value for name, value in settings.items() if name not in free},
            "model": {"class": model_class, "config": config, "adapters": _adapters(model), "frozen_weights": base},
            "train_dataset": _describe(dataset, args.device),
        },
        "environment": {
            **{name: _version(name) for name in ("infobert-fast", "torch", "transformers", "accelerate", "numpy")},
            "device": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type,
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return plain


def find_checkpoint(
    request: str | bool | None,
    output_dir: Path,
    record_of: Callable[[], Mapping[str, Any]],
    *,
    pickled: bool,
    with_changes: bool,
) -> str | None:
    """The folder to go on from; None for a fresh start. Reads the disk: call it on one rank and tell the others.

    Args:
        request: ``"auto"``: the newest whole checkpoint of ``output_dir``, a fresh start if there is none; True: the
            same, an error if there is none; a folder; None or False: a fresh start.
        record_of: gives this run's :func:`run_record`; not asked for a fresh start.
        pickled: the engine's state is unpickled, which could run foreign code: only from ``output_dir`` then.
        with_changes: warn of changed settings instead of refusing them.

    Raises:
        ValueError: for a checkpoint that is missing, not whole, foreign, or of a run with other settings.
    """
    if request is None or request is False:
        return None
    if request == "auto" or str(request).lower() == "true":
        if (folder := checkpoints.newest(output_dir)) is None:
            if request == "auto":
                return None
            raise ValueError(
                f"`resume_from_checkpoint` was {request}; {output_dir} holds no whole checkpoint: use 'auto', which "
                f"starts afresh then"
            )
    else:
        folder = Path(str(request))
        if pickled and not folder.resolve().is_relative_to(output_dir.resolve()):
            raise ValueError(
                f"`resume_from_checkpoint` was {folder}, outside the run's `output_dir` {output_dir}; the "
                f"engine's state is unpickled, which runs whatever code is in it: set `output_dir` to the run's folder"
            )
        if (reason := checkpoints.fault(folder)) is not None:
            raise ValueError(
                f"`resume_from_checkpoint` was {folder}, which is not whole: {reason}; use 'auto' for the newest whole "
                f"checkpoint of `output_dir`, or give the folder as the model, to start afresh from its weights"
            )
    manifest, record = checkpoints.read_manifest(folder), record_of()
    if not manifest["resumable"]:
        raise ValueError(
            f"`resume_from_checkpoint` was {folder}, which holds the model alone (save_only_model): give it as the "
            f"model, to start afresh from its weights"
        )
    for line in differences(manifest["environment"], record["environment"]):
        logger.warning("%s was written with another environment, last digits may differ: %s", folder, line)
    if changed := differences(manifest["run"], record["run"]):
        text = "; ".join(changed)
        if not with_changes:
            raise ValueError(
                f"{folder} is of a run with other settings, and would not go on as that run: {text}. Set them back, "
                f"or set `resume_with_changes` to go on all the same, or give the folder as the model, to start afresh "
                f"from its weights"
            )
        logger.warning("going on from %s with other settings than before: %s", folder, text)
    return str(folder)


def differences(then: Any, now: Any, name: str = "") -> list[str]:
    """``name: then -> now`` for every value that two records do not share. Names that one of them lacks are left out:
    another release may know other settings.
    """
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        common = [key for key in then if key in now]
        return [line for key in common for line in differences(then[key], now[key], f"{name}.{key}" if name else key)]
    return [] if then == now else [f"{name}: {then!r} -> {now!r}"]


def frozen_digest(model: Any) -> str | None:
    """A digest of weights that adapters leave as they are, and which no checkpoint of adapters holds: a few values of
    each. None for a model without adapters, or none at hand.
    """
    if not getattr(model, "peft_config", None):
        return None
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        if value.requires_grad or "original_module" in name:  # which `peft` keeps of a module that it copies
            continue
        few = value.detach().flatten()[:: max(1, value.numel() // PROBES)]
        digest.update(repr((name, few.tolist())).encode())
    return digest.hexdigest()


def _adapters(model: Any) -> dict[str, Any]:
    """The settings of a model's adapters by name, in an order of their own; where they came from is left out."""
    settings = {}
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
        settings[name] = {key: v for key, v in plain.items() if key not in ORIGINS}
    return settings


def _describe(dataset: Any, device: torch.device) -> dict[str, Any]:
    """Length, and a digest of examples from all over the dataset; the random state is left as it was."""
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not len(dataset):
        return {"length": len(dataset) if isinstance(dataset, Sized) else None}
    digest, replay = hashlib.sha256(), RandomReplay(device)
    for index in sorted({i * (len(dataset) - 1) // (PROBES - 1) for i in range(PROBES)}):
        example = dataset[index]  # type: ignore[index]
        for name in ("input_ids", "labels", "label"):
            if isinstance(example, Mapping) and name in example:
                digest.update(repr((name, torch.as_tensor(example[name]).tolist())).encode())
    replay.rewind()
    return {"length": len(dataset), "sha256": digest.hexdigest()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
