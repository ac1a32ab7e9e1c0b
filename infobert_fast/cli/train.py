"""``infobert train``: a YAML file's settings, what the command line says over them, and a trainer."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser

from infobert_fast import checks
from infobert_fast.data.settings import read_yaml
from infobert_fast.training.arguments import InfoBertArguments, decided_by
from infobert_fast.training.engines.ready import has_own_precision, with_ready_files
from infobert_fast.training.plan import plan_of
from infobert_fast.training.run import DataArguments, ModelArguments, build_trainer, train
from infobert_fast.training.throughput import throughput_line
from infobert_fast.training.trainer import InfoBertTrainer

__all__ = ["parse_training", "prepare"]

DRY_RUN = "--dry_run"
CONFIGS = Path(__file__).parents[1] / "configs"


def parse_training(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, InfoBertArguments]:
    """A YAML file's settings, then ``--name value`` over them. Unknown names in either are errors.

    ``--objective`` takes back what the file says of the arguments that it decides: ``version`` and the adversary's.

    Raises:
        ValueError, FileNotFoundError: for an unknown name or file, or a value that an argument does not take.
    """
    kinds: Any = (ModelArguments, DataArguments, InfoBertArguments)
    usage = "infobert train [CONFIG] [--name value ...]"  # all names would bury an error's line
    parser = HfArgumentParser(kinds, prog="infobert train", usage=usage, allow_abbrev=False)
    for action in parser._actions:  # only what is given on the command line may override the file
        action.default, action.required = argparse.SUPPRESS, False
    parser.add_argument(DRY_RUN, action="store_true", help="check data and model, print the plan, train nothing")
    parser.add_argument("config", nargs="?", help=f"a YAML file, or the name of a published setting: {_config_names()}")
    given = vars(parser.parse_args(list(arguments)))
    given.pop(DRY_RUN.lstrip("-"))
    file = _read_config(given.pop("config"), parser)
    if "objective" in given:  # it also takes back what the file says of the arguments that it decides
        file = {name: value for name, value in file.items() if name not in decided_by(given["objective"])}
    settings = file | given
    settings = _defaults(settings) | settings
    model_args, data_args, args = parser.parse_dict(with_ready_files(settings))
    return cast(ModelArguments, model_args), cast(DataArguments, data_args), cast(InfoBertArguments, args)


def prepare(arguments: Sequence[str]) -> Callable[[], Any]:
    """Show the resolved configuration, read data and model and find the checkpoint to go on from; the work is the
    training.

    With ``--dry_run`` the work is to show the plan: data and model are read and checked, and nothing is trained.
    """
    dry = DRY_RUN in arguments
    model_args, data_args, args = parse_training([word for word in arguments if word != DRY_RUN])
    console = Console(stderr=True, quiet=not args.should_log)
    table = Table("argument", "value", title="resolved configuration")
    for part in (model_args, data_args):
        for name, value in vars(part).items():
            table.add_row(name, str(value))
    for item in dataclasses.fields(args):
        value = getattr(args, item.name)
        if item.init and (item.name in InfoBertArguments.__annotations__ or value != item.default):
            table.add_row(item.name, str(value))
    console.print(table)
    if not dry and args.should_save:
        checks.writable("output_dir", Path(cast(str, args.output_dir)), folder=True)  # before the data is read
    trainer = build_trainer(model_args, data_args, args)
    if dry:
        return lambda: _show_plan(trainer, data_args.max_length)
    args.resume_from_checkpoint = trainer.checkpoint_of(args.resume_from_checkpoint)
    return lambda: console.print(throughput_line(train(trainer)), markup=False, highlight=False, soft_wrap=True)


def _show_plan(trainer: InfoBertTrainer, max_length: int) -> None:
    table = Table("quantity", "value", title="plan")
    for row in plan_of(trainer, max_length).rows():
        table.add_row(*row)
    if trainer.args.should_log:
        Console().print(table)


def _read_config(name: str | None, parser: HfArgumentParser) -> dict[str, Any]:
    """Settings of a YAML file; text becomes the argument's type, for `2e-5` is no number to YAML."""
    if name is None:
        return {}
    path = Path(name) if Path(name).is_file() else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"`config` was {name!r}, which is no file; published settings are {_config_names()}")
    settings = read_yaml(path.read_text(encoding="utf-8")) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}; it must be a mapping of argument names to values")
    actions = {action.dest: action for action in parser._actions}
    if unknown := sorted(set(settings) - set(actions)):
        raise ValueError(f"{path} sets {', '.join(unknown)}, which no argument is called: see infobert train --help")
    for key, value in settings.items():
        if actions[key].nargs == "+" and not isinstance(value, list):
            settings[key] = [value]
        elif isinstance(value, str) and callable(convert := actions[key].type):
            settings[key] = convert(value)
    return settings


def _defaults(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What nobody should have to ask for: TensorBoard where it is installed, bfloat16 where the device has it."""
    return {
        "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
        # Another precision, a CPU or an engine with its own autocast would contradict it.
        "bf16": not (chosen.get("fp16") or chosen.get("use_cpu") or has_own_precision(chosen))
        and torch.cuda.is_available()
        and torch.cuda.is_bf16_supported(),
    }


def _config_names() -> str:
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml"))) or "none"
