"""Engines among the arguments: ready files by name, and what is refused before there is an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ENGINES_ARGUMENTS", "check_arguments", "has_own_precision", "settle_arguments", "with_ready_files"]

# What transformers' arguments say of an engine; a checkpoint's record names the engine itself.
ENGINES_ARGUMENTS = (
    *("deepspeed", "fsdp", "fsdp_config", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_find_unused_parameters"),
)

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = {"deepspeed": "deepspeed", "fsdp_config": "fsdp"}  # arguments that take a file; where the ready ones are


def with_ready_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the path of a ready file in the place of its name. A file for FSDP asks for FSDP.

    Raises:
        FileNotFoundError: for a name that is no file and none of the ready ones, naming those.
    """
    settings = dict(settings)
    for argument, folder in FOLDERS.items():
        name = settings.get(argument)
        if not isinstance(name, str) or name.startswith("{") or Path(name).is_file():
            continue
        file = CONFIGS / folder / f"{name}.json"
        if not file.is_file():
            ready = ", ".join(sorted(path.stem for path in file.parent.glob("*.json")))
            raise FileNotFoundError(f"`{argument}` was {name!r}, which is no file; ready ones are {ready}")
        settings[argument] = str(file)
    if settings.get("fsdp_config"):
        settings.setdefault("fsdp", True)
    return settings


def has_own_precision(settings: Mapping[str, Any]) -> bool:
    """Whether the settings name an engine whose file sets the precision."""
    return bool(settings.get("deepspeed"))


def settle_arguments(args: Any) -> None:
    """Choose what the user left open and the Trainer would choose otherwise."""
    if args.ddp_find_unused_parameters is None:
        # The critic works outside the wrapped forward, where DistributedDataParallel would take its weights for unused.
        args.ddp_find_unused_parameters = False


def check_arguments(args: Any, *, critic: bool) -> None:
    """Refuse what transformers would ignore, or an engine misread.

    Args:
        args: transformers' training arguments.
        critic: whether the model has one.

    Raises:
        ValueError: naming the argument.
    """
    if args.fsdp_config and not args.fsdp:
        raise ValueError("`fsdp_config` was set and `fsdp` was not, without which nothing reads it: set fsdp=True")
    if args.ddp_find_unused_parameters and critic:
        raise ValueError(
            f"`ddp_find_unused_parameters` was {args.ddp_find_unused_parameters} with `version` {args.version}; "
            f"DistributedDataParallel would take the critic for unused: leave it unset"
        )
