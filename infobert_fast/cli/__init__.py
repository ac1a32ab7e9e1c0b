"""The command ``infobert``: one module a command, whose ``prepare`` parses, checks and reads, and returns the work."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import yaml

__all__ = ["main"]

USAGE = """usage: infobert COMMAND ...

  train CONFIG.yaml [--name value ...]      fine-tune; published settings by name: see infobert train --help
                                            --dry_run checks data and model and prints the plan
  evaluate MODEL --suite nli|qa|SOURCE ...  clean and adversarial sets in one table; --data for sets by themselves;
                                            of two models, whether one is better
  attack MODEL --data SOURCE ...            change words until the model errs; writes the adversarial set
  explain MODEL TEXT ...                    useless, anchored and non-robust tokens, in the terminal and on a page
  calibrate MODEL --data SOURCE ...         the adversary and the weights that a trained model wants
  bench [SUITE ...]                         the benchmarks, side by side with their baselines
  tune TABLE.json                           time the kernels' launch configurations on this machine's GPU

`infobert COMMAND --help` lists a command's arguments. Launch training on several GPUs with
`torchrun --nproc_per_node N -m infobert_fast.cli train CONFIG.yaml ...`, or with
`deepspeed --module infobert_fast.cli train CONFIG.yaml --deepspeed zero2 ...`."""

COMMANDS = ("train", "evaluate", "attack", "explain", "calibrate", "bench", "tune")  # each a module of this package


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 2 with a message on stderr for what was wrong before the work began."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0].startswith("--local_rank"):  # DeepSpeed's launcher puts it first; LOCAL_RANK says it too
        del given[0]
    command, *rest = given or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if command not in COMMANDS:
            raise ValueError(f"there is no such command; it must be one of {', '.join(COMMANDS)}: see infobert --help")
        work = importlib.import_module(f"infobert_fast.cli.{command}").prepare(rest)
    except (ValueError, TypeError, OSError, ImportError, yaml.YAMLError) as error:
        print(f"infobert {command}: {error}", file=sys.stderr)
        return 2
    work()
    return 0
