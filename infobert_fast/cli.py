"""The command ``infobert``: parse, call, print."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from infobert_fast.data.corpora import load_many
from infobert_fast.evaluation.accuracy import Accuracy, evaluate
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.run import DataArguments, ModelArguments, build_trainer, train

__all__ = ["main", "parse_training"]

CONFIGS = Path(__file__).parent / "configs"
USAGE = """usage: infobert train CONFIG.yaml [--name value ...]      fine-tune; published settings by name: {configs}
       infobert train --help                              every argument
       infobert evaluate MODEL --data SOURCE [SOURCE ...] [--output FILE.json] [--max_length N] [--batch_tokens N]

Launch on several GPUs with `torchrun --nproc_per_node N -m infobert_fast.cli train CONFIG.yaml ...`, or with
`deepspeed --module infobert_fast.cli train CONFIG.yaml --deepspeed zero2 ...`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 with a message on stderr for what was wrong before the work began."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0].startswith(
        "--local_rank"
    ):  # DeepSpeed's launcher puts it first, and says it in LOCAL_RANK too
        del given[0]
    command, *rest = given or ["--help"]
    try:
        if command == "train":
            work = _prepare_training(rest)
        elif command == "evaluate":
            work = _prepare_evaluation(rest)
        elif command in ("-h", "--help"):
            print(USAGE.format(configs=_config_names()))
            return 0
        else:
            raise ValueError(f"the command was {command!r}; it must be train or evaluate: see infobert --help")
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        print(f"infobert {command}: {error}", file=sys.stderr)
        return 2
    work()
    return 0


def parse_training(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, InfoBertArguments]:
    """A YAML file's settings, then ``--name value`` over them. Unknown names in either are errors.

    Raises:
        ValueError, FileNotFoundError: for an unknown name or file, or a value that an argument does not take.
    """
    kinds: Any = (ModelArguments, DataArguments, InfoBertArguments)
    parser = HfArgumentParser(kinds, prog="infobert train", allow_abbrev=False)
    for action in parser._actions:  # only what is given on the command line may override the file
        action.default, action.required = argparse.SUPPRESS, False
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of a published setting")
    given = vars(parser.parse_args(list(arguments)))
    settings = _read_config(given.pop("config"), parser) | given
    settings = _defaults(settings) | settings
    if isinstance(engine := settings.get("deepspeed"), str) and not Path(engine).is_file():
        packaged = CONFIGS / "deepspeed" / f"{engine}.json"
        if not packaged.is_file():
            names = sorted(path.stem for path in packaged.parent.glob("*.json"))
            raise FileNotFoundError(f"`deepspeed` was {engine!r}, which is no file; ready ones are {', '.join(names)}")
        settings["deepspeed"] = str(packaged)
    model_args, data_args, args = parser.parse_dict(settings)
    return cast(ModelArguments, model_args), cast(DataArguments, data_args), cast(InfoBertArguments, args)


def _prepare_training(arguments: Sequence[str]) -> Callable[[], Any]:
    model_args, data_args, args = parse_training(arguments)
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
    trainer = build_trainer(model_args, data_args, args)
    return lambda: train(trainer)


def _prepare_evaluation(arguments: Sequence[str]) -> Callable[[], Any]:
    parser = argparse.ArgumentParser(prog="infobert evaluate", allow_abbrev=False)
    parser.add_argument("model", help="a fine-tuned model's folder, or its name on the hub")
    parser.add_argument("--data", nargs="+", required=True, help="sources: [name=]path[#field][:split]")
    parser.add_argument("--output", type=Path, help="also write the table here, as JSON")
    parser.add_argument("--max_length", type=int, default=128, help="longest pair in tokens")
    parser.add_argument("--batch_tokens", type=int, default=16_384, help="tokens per batch, padding included")
    given = parser.parse_args(list(arguments))
    corpora = load_many(given.data)
    model = AutoModelForSequenceClassification.from_pretrained(given.model, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    return lambda: _evaluate(given, model, tokenizer, corpora)


def _evaluate(given: argparse.Namespace, model: Any, tokenizer: Any, corpora: dict[str, Any]) -> None:
    results = evaluate(model, tokenizer, corpora, max_length=given.max_length, batch_tokens=given.batch_tokens)
    table = Table("corpus", "accuracy %", "95 % interval", "examples", title=given.model)
    for name, result in results.items():
        low, high = result.interval
        table.add_row(name, f"{100 * result.value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", str(result.count))
    Console().print(table)
    if given.output is not None:
        _write_json(given.output, {name: _as_dict(result) for name, result in results.items()})


def _read_config(name: str | None, parser: HfArgumentParser) -> dict[str, Any]:
    """Settings of a YAML file; text becomes the argument's type, for `2e-5` is no number to YAML."""
    if name is None:
        return {}
    path = Path(name) if Path(name).is_file() else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"`config` was {name!r}, which is no file; published settings are {_config_names()}")
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
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
        "bf16": not any(chosen.get(name) for name in ("fp16", "use_cpu", "deepspeed"))
        and torch.cuda.is_available()
        and torch.cuda.is_bf16_supported(),
    }


def _config_names() -> str:
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml"))) or "none"


def _as_dict(result: Accuracy) -> dict[str, Any]:
    low, high = result.interval
    return {"accuracy": result.value, "low": low, "high": high, "examples": result.count}


def _write_json(path: Path, content: Any) -> None:
    """Whole or not at all: written beside the target, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
