"""What a step of InfoBertTrainer costs beyond one of transformers' Trainer in standard training, on the host.

    python benchmarks/overhead.py [--pairs 7] [--steps 60]

Both train the same model on the same batches with the same settings, one run after the other, and which goes first
alternates. A figure is the ratio of the process's CPU time a step within a pair; printed are the median and the
range over the pairs. CPU time leaves out what other processes on the machine take, except for the caches.
Beside it stands the number of Python calls a step, which does not vary.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import pstats
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from infobert_fast import InfoBertArguments, InfoBertTrainer

WARM = 10  # steps before the clock starts: the look at the first batch, allocation, the optimiser's state
SIZES = {"small (2 x 64)": (2, 64, 2), "medium (4 x 256)": (4, 256, 4)}  # layers, width, heads


class Clock(TrainerCallback):
    """CPU seconds, and Python calls where a profile is taken, of all steps but the first ones."""

    def __init__(self, profile: cProfile.Profile | None = None) -> None:
        self.profile, self.seconds = profile, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM:
            self.seconds = -time.process_time()
            if self.profile is not None:
                self.profile.enable()
        elif state.global_step == state.max_steps:
            self.seconds += time.process_time()
            if self.profile is not None:
                self.profile.disable()


def run(ours: bool, layers: int, width: int, heads: int, steps: int, profile: cProfile.Profile | None = None) -> float:
    """CPU seconds a step of one training."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=1000,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            num_labels=3,
        )
    )
    lengths = torch.randint(12, 48, (8 * (steps + WARM),)).tolist()
    examples = [{"input_ids": torch.randint(5, 1000, (n,)).tolist(), "labels": n % 3} for n in lengths]
    clock = Clock(profile)
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "use_cpu": True,
            "max_steps": steps + WARM,
            "per_device_train_batch_size": 8,
            "logging_steps": 20,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        kind, args = (
            (InfoBertTrainer, InfoBertArguments(**common, objective="vanilla"))
            if ours
            else (Trainer, TrainingArguments(**common))
        )
        trainer: Trainer = kind(model, args, train_dataset=examples, data_collator=pad, callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds / steps


def pad(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The plainest collator."""
    longest = max(len(example["input_ids"]) for example in examples)
    rows = [(e["input_ids"], longest - len(e["input_ids"])) for e in examples]
    return {
        "input_ids": torch.tensor([ids + [0] * missing for ids, missing in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * missing for ids, missing in rows]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def calls(ours: bool, size: tuple[int, int, int], steps: int) -> float:
    """Python calls a step."""
    profile = cProfile.Profile()
    run(ours, *size, steps, profile)
    return pstats.Stats(profile).total_calls / steps  # type: ignore[attr-defined]


def main() -> None:
    """Print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for name, size in SIZES.items():
        run(True, *size, 2), run(False, *size, 2)  # what a process does once
        ratios, seconds = [], []
        for pair in range(chosen.pairs):
            ours_first = pair % 2 == 0
            first, second = run(ours_first, *size, chosen.steps), run(not ours_first, *size, chosen.steps)
            ours, stock = (first, second) if ours_first else (second, first)
            ratios.append(ours / stock)
            seconds.append(stock)
        print(
            f"{name}: {statistics.median(ratios):.3f} of the stock Trainer's CPU time a step (median of {chosen.pairs} "
            f"pairs, {min(ratios):.3f} to {max(ratios):.3f}; stock {1e3 * statistics.median(seconds):.2f} ms); "
            f"Python calls a step {calls(True, size, 20):,.0f}, stock {calls(False, size, 20):,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
