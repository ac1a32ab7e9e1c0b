"""Kill a training with SIGKILL again and again; it must end as the one that nobody disturbed, to the last bit.

    python kill.py OUT [--engine one|ddp|fsdp2|zero2] [--kills 30] [--steps 240] [--seed 0]

Every second kill comes at a random moment, the others at a random file operation within the writing or deleting of a
checkpoint. On two ranks one of them is killed at random; under DistributedDataParallel and FSDP2 the other must end by
itself, while DeepSpeed's, which waits in shared memory for ever on CPUs, is ended as a launcher would. Prints a report
as JSON; the exit status is 1 if anything differs. Runs are forked from this process, which has imported everything, so
that a start takes a fraction of a second.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

from infobert_fast import InfoBertArguments, InfoBertTrainer
from infobert_fast.training.reliability import checkpoints

ENGINES = {"one": 1, "ddp": 2, "fsdp2": 2, "zero2": 2}
CONFIGS = files("infobert_fast") / "configs"
PATIENCE = 60  # seconds


def train(out, engine, steps):
    """One start, from the newest whole checkpoint; everything that draws random numbers is on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.2,
        num_labels=3,
        pad_token_id=1,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
    )
    args = InfoBertArguments(
        str(out),
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        warmup_steps=5,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        critic_hidden_dim=12,
        alpha=0.3,
        beta=0.05,
        adv_lr=0.3,
        adv_init_mag=0.5,
        adv_steps=2,
        deepspeed=str(CONFIGS / "deepspeed" / "zero2.json") if engine == "zero2" else None,
        fsdp=engine == "fsdp2" or None,
        fsdp_config=str(CONFIGS / "fsdp" / "fsdp2.json") if engine == "fsdp2" else None,
    )
    if engine == "fsdp2":  # or accelerate, which shards on devices alone, would take DistributedDataParallel
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    numbers = np.random.RandomState(0)
    examples = [
        {"input_ids": numbers.randint(3, 60, size=n).tolist(), "labels": int(numbers.randint(3))}
        for n in numbers.randint(3, 12, size=24)  # 6 steps an epoch alone, 3 on two ranks
    ]
    trainer = InfoBertTrainer(BertForSequenceClassification(config), args, train_dataset=examples, data_collator=pad)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.save_state()


def pad(batch):
    longest = max(len(example["input_ids"]) for example in batch)
    missing = [longest - len(example["input_ids"]) for example in batch]
    return {
        "input_ids": torch.tensor([e["input_ids"] + [1] * m for e, m in zip(batch, missing, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - m) + [0] * m for m in missing]),
        "labels": torch.tensor([example["labels"] for example in batch]),
    }


class FileOperations:
    """Counts this process's file operations on unfinished checkpoints, and dies at one of them."""

    EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")

    def __init__(self, fatal=None):
        self.count, self.fatal = 0, fatal
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if event in self.EVENTS and any("tmp-checkpoint-" in str(argument) for argument in arguments):
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


def start(out, engine, steps, victim=None, fatal=None):
    """Fork the ranks of one run; their process ids. Rank ``victim`` dies at its ``fatal``-th file operation."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(ENGINES[engine]):
        process = os.fork()
        if process:
            ranks.append(process)
            continue
        status = 1
        try:
            log = os.open(out.with_name(f"{out.name}-{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if ENGINES[engine] > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(ENGINES[engine]),
                    "LOCAL_WORLD_SIZE": str(ENGINES[engine]),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            operations = FileOperations(fatal if rank == victim else None)
            train(out, engine, steps)
            out.with_name(f"{out.name}-{rank}.operations").write_text(str(operations.count))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return ranks


def ended(process, until):
    """Whether the process ends by a moment."""
    while time.monotonic() < until:
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


def numbers(out):
    """Of which steps there are checkpoints."""
    return [int(path.name.split("-")[1]) for path in out.glob("checkpoint-*")]


def run_to_the_end(out, engine, steps):
    statuses = [os.waitpid(process, 0)[1] for process in start(out, engine, steps)]
    if any(statuses):
        sys.exit(f"a run failed; see {out}-*.log")


def disturbed(out, engine, steps, kills, dice, pause, operations):
    """Start and kill until it has been killed ``kills`` times, then let it finish; what happened.

    ``pause``: about how many seconds lie between two checkpoints; ``operations``: how many file operations of each rank
    a checkpoint takes.
    """
    report = {"kills": 0, "while_writing": 0, "sealed_unnamed": 0, "resumed_from": [], "survivor_seconds": []}
    while report["kills"] < kills:
        number = dice.randrange(ENGINES[engine])
        if report["kills"] % 2:
            ranks = start(out, engine, steps)
            began, awaited = time.monotonic(), max(numbers(out), default=0) + 2 * dice.randrange(2)
            while max(numbers(out), default=0) < awaited and time.monotonic() < began + PATIENCE:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, pause))
            os.kill(ranks[number], signal.SIGKILL)
        else:  # within the second checkpoint from here, at the latest
            ranks = start(out, engine, steps, number, dice.randint(1, 2 * operations[number]))
        victim = ranks[number]
        if not os.WIFSIGNALED(os.waitpid(victim, 0)[1]):
            sys.exit(f"a run ended before its kill; give it more steps, or see {out}-*.log")
        struck = time.monotonic()
        survivors = [process for process in ranks if process != victim]
        for process in survivors:
            if engine == "zero2" or not ended(process, struck + PATIENCE):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            seconds = time.monotonic() - struck
            if seconds > PATIENCE:
                sys.exit(f"a rank was still waiting {PATIENCE} s after the other was killed")
            report["survivor_seconds"].append(round(seconds, 2))
        report["kills"] += 1
        unfinished = [folder for path in out.glob("tmp-checkpoint-*") for folder in path.glob("*")]
        report["while_writing"] += bool(unfinished)
        report["sealed_unnamed"] += any(checkpoints.fault(folder) is None for folder in unfinished)
        for number in numbers(out):  # whatever bears the name of a checkpoint is whole
            if reason := checkpoints.fault(out / f"checkpoint-{number}"):
                sys.exit(f"checkpoint-{number} is not whole: {reason}")
        report["resumed_from"].append(max(numbers(out), default=0))
    run_to_the_end(out, engine, steps)
    return report


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--engine", choices=ENGINES, default="one")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    args.out.mkdir(parents=True)
    if args.engine == "zero2":
        import deepspeed  # noqa: F401 (once, rather than in every start)
    began = time.monotonic()
    run_to_the_end(args.out / "whole", args.engine, args.steps)
    pause = 2 * (time.monotonic() - began) / args.steps
    counted = [int((args.out / f"whole-{rank}.operations").read_text()) for rank in range(ENGINES[args.engine])]
    operations = [max(1, 2 * count // args.steps) for count in counted]
    dice = random.Random(args.seed)
    report = disturbed(args.out / "killed", args.engine, args.steps, args.kills, dice, pause, operations)
    report["operations"] = operations
    weights, curves = [], []
    for name in ("whole", "killed"):
        weights.append(load_file(args.out / name / "model.safetensors"))
        history = json.loads((args.out / name / "trainer_state.json").read_text())["log_history"]
        curves.append([{k: v for k, v in line.items() if k != "epoch"} for line in history if "loss" in line])
    report["steps"] = len(curves[0])
    report["weights_equal"] = weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
    )
    report["curves_equal"] = curves[0] == curves[1]
    report["left_behind"] = [path.name for path in (args.out / "killed").glob("tmp-*")]
    print(json.dumps(report))
    return int(not (report["weights_equal"] and report["curves_equal"] and not report["left_behind"]))


if __name__ == "__main__":
    sys.exit(main())
