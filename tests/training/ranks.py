"""A script of tiny trainings: run alone, or by torchrun under one engine after the other.

    python ranks.py OUT RANKS ENGINE... [--grid | --nonfinite]     ENGINE: one, ddp, or an engine's file in the package

RANKS is how many ranks' data one optimisation step sees. Run alone with the engine "one", one process plays them all:
the ranks' micro-batches follow each other in its accumulation, or, where a scenario asks for it, stand in one joint
batch. --grid runs the whole grid of cases and nothing else, --nonfinite the runs with a NaN alone. Each process writes
``OUT/<engine>-<scenario>-<rank>.pt``.
"""

import argparse
import contextlib
import json
import os
import sys
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from infobert_fast import InfoBertArguments, InfoBertTrainer
from infobert_fast.training.models.critic import attach_critic
from infobert_fast.training.steps.infobert import step_seed

BATCH = 4  # sentences of a rank in a micro-batch
GRADIENT = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}  # parameters move by minus the gradient
INFOBERT = {"critic_hidden_dim": 20, "cl": 0.5, "ch": 0.9, "alpha": 0.3, "beta": 0.05, "adv_lr": 0.3,
    "adv_init_mag": 0.5}  # fmt: skip
GRID = list(product((-1, 3, 6), (1, 3), (1, 2)))  # version, adv_steps, accumulation
BRIEF = ("fsdp2_keep", "zero1", "zero2_offload")  # in the suite, engines that go through the same lines as others
SUITE = dict.fromkeys(BRIEF, GRID[-3:]) | dict.fromkeys(("fsdp2", "zero3"), GRID[1::2])  # slow: with accumulation


def make_model(dropout):
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
        num_labels=3,
        pad_token_id=1,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    for parameter in attach_critic(model, 20).parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def make_examples(count, lengths=None):
    random = np.random.RandomState(0)
    lengths = random.randint(3, 12, size=count) if lengths is None else lengths
    return [{"input_ids": random.randint(3, 60, size=n).tolist(), "labels": int(random.randint(3))} for n in lengths]


def pad(examples):
    longest = max(len(example["input_ids"]) for example in examples)
    missing = [longest - len(example["input_ids"]) for example in examples]
    return {
        "input_ids": torch.tensor([e["input_ids"] + [1] * m for e, m in zip(examples, missing, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - m) + [0] * m for m in missing]),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def engine_settings(engine):
    """What asks transformers for an engine."""
    if engine in ("one", "ddp"):
        return {}
    if engine.startswith("fsdp2"):
        return {"fsdp": True, "fsdp_config": str(files("infobert_fast") / "configs" / "fsdp" / f"{engine}.json")}
    return {"deepspeed": configuration(engine)}


def configuration(engine):
    """The package's DeepSpeed file, with bounds so small that this model's weights are really cut up and freed."""
    name = engine.replace("zero0", "zero1")  # which needs no file of its own
    config = json.loads((files("infobert_fast") / "configs" / "deepspeed" / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    zero |= {"stage": int(engine[4]), "reduce_bucket_size": 3000}
    if zero["stage"] == 3:
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 1000,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        }
    if "offload_optimizer" in zero:
        config["zero_force_ds_cpu_optimizer"] = False  # so that it may be SGD
    return config


class Traffic:
    """Elements of gradients that this process sends: what goes into ``torch.distributed``'s sums while it watches."""

    SUMS = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single")

    def __init__(self):
        self.elements, self.watching = dict.fromkeys(self.SUMS, 0), False
        for name in self.SUMS:  # before DeepSpeed is imported, which keeps these functions
            if hasattr(torch.distributed, name):  # the last one is new
                setattr(torch.distributed, name, self._counting(name, getattr(torch.distributed, name)))

    def _counting(self, name, original):
        def counted(*args, **kwargs):
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
            if not self.watching:
                return original(*args, **kwargs)
            self.elements[name] += max(tensor.numel() for tensor in tensors)
            self.watching = False  # one of these functions may call another
            try:
                return original(*args, **kwargs)
            finally:
                self.watching = True

        return counted


TRAFFIC = Traffic()


class Watch(TrainerCallback):
    """Notes the gradients' traffic of each optimisation step, in which dtype the encoder works, and how often."""

    def __init__(self):
        self.reduced, self.dtypes, self.inputs, self.hooks = [], set(), set(), []
        self.sentences = []  # of each micro-batch
        self.forwards, self.traversals = 0, 0  # of a layer, and backwards through it

    def attach(self, trainer):
        self.trainer = trainer
        inner = trainer.training_step

        def watched(model, inputs, *args, **kwargs):
            self.sentences.append(len(inputs["lengths"]))
            if not self.hooks:
                self._hook(model)
            TRAFFIC.watching = True
            step = getattr(model, "step", None)  # DeepSpeed's, in which norms and overflows are summed, not gradients
            if step is not None:

                def quiet():
                    TRAFFIC.watching = False
                    step()

                model.step = quiet
            try:
                return inner(model, inputs, *args, **kwargs)
            finally:
                TRAFFIC.watching = False
                if step is not None:
                    del model.step

        trainer.training_step = watched

    def _hook(self, model):
        bert = self.trainer.model.bert
        self.hooks = [
            bert.encoder.layer[0].attention.self.query.register_forward_hook(self._count),
            bert.embeddings.token_type_embeddings.register_forward_hook(
                lambda module, args, out: self.inputs.add(str(out.dtype))
            ),
        ]
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            # its reducer's sums pass through Python only if asked to
            model.register_comm_hook(None, default_hooks.allreduce_hook)

    def _count(self, module, args, out):
        self.dtypes.add(str(out.dtype))
        self.forwards += 1
        if out.requires_grad:
            out.register_hook(self._count_traversal)

    def _count_traversal(self, grad):
        self.traversals += 1

    def on_step_begin(self, args, state, control, **kwargs):
        TRAFFIC.elements = dict.fromkeys(TRAFFIC.SUMS, 0)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.reduced.append(sum(TRAFFIC.elements.values()))


class OneForAll(InfoBertTrainer):
    """Draws, in one process, what each of the ranks it plays would draw for its micro-batches."""

    played = 1

    def _seed(self):
        seed = super()._seed()
        step, micro = self._place
        return seed if self.played == 1 else step_seed(self.args.seed, micro % self.played, step, micro // self.played)


def weights(model):
    """Copies of all parameters, whole where an engine has cut them up."""
    context = contextlib.nullcontext()
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        import deepspeed

        context = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with context:
        values = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return {name: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for name, v in values.items()}


def build(engine, name, out, ranks, *, examples, joint=False, dropout=0.0, accumulation=1, **settings):
    """A trainer, and the watch on it."""
    objective = settings.get("objective", "infobert")
    played = ranks // int(os.environ.get("WORLD_SIZE", "1"))  # how many ranks this process plays
    model = make_model(dropout)
    if objective != "infobert" or settings.get("version", 6) not in (4, 5, 6):
        del model.mi_estimator
    settings = {
        "use_cpu": True,
        "per_device_train_batch_size": BATCH * (played if joint else 1),
        "gradient_accumulation_steps": accumulation * (1 if joint else played),
        "train_sampling_strategy": "random" if "batch_tokens" in settings else "sequential",
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **(INFOBERT if objective == "infobert" else {}),
        "lr_scheduler_type": "constant",
        **GRADIENT,
        **engine_settings(engine),
        **settings,
    }
    watch = Watch()
    if not engine.startswith("fsdp2"):
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # which accelerate leaves to later trainings of a process
    args = InfoBertArguments(str(out / f"{engine}-{name}"), **settings)
    if engine.startswith("fsdp2"):  # or accelerate, which shards on devices alone, would take DistributedDataParallel
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = OneForAll(
        model, args, train_dataset=examples, eval_dataset=examples[:6], data_collator=pad, callbacks=[watch]
    )
    trainer.played = played
    watch.attach(trainer)
    return trainer, watch


def record(trainer, watch, before, path):
    """Write what a test may ask about a finished training."""
    after = weights(trainer.model)
    torch.save(
        {
            "before": before,
            "after": after,
            "movement": {key: before[key] - after[key] for key in before},
            "club": {} if trainer._club is None else dict(trainer._club.state_dict()),
            "logs": [line for line in trainer.state.log_history if "loss" in line],
            "reduced": watch.reduced,
            "parameters": sum(value.numel() for value in before.values()),
            "dtypes": sorted(watch.dtypes),
            "inputs": sorted(watch.inputs),
            "work": [watch.forwards, watch.traversals],
            "engine": type(trainer.model_wrapped).__name__,
            "steps": trainer.state.global_step,
            "sentences": watch.sentences,
        },
        path,
    )


def run(engine, name, out, ranks, **settings):
    trainer, watch = build(engine, name, out, ranks, **settings)
    before = weights(trainer.model)
    trainer.train()
    record(trainer, watch, before, out / f"{engine}-{name}-{trainer.args.process_index}.pt")


class Snapshots(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.taken = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.taken.append(weights(model))


def nonfinite(engine, out, ranks):
    """Three steps; the second rank's task loss is NaN in the second one's first micro-batch."""
    for action in ("stop", "skip"):
        trainer, _ = build(engine, action, out, ranks, examples=make_examples(6 * BATCH * ranks), accumulation=2,
            adv_steps=2, nonfinite=action, optim="adamw_torch", learning_rate=1e-2, max_grad_norm=1.0)  # fmt: skip
        inner = trainer.compute_loss

        def spoiled(*args, trainer=trainer, inner=inner, **kwargs):
            loss, outputs = inner(*args, **kwargs)
            spoil = (trainer.args.process_index, *trainer._place) == (1, 1, 0)
            return (loss * float("nan") if spoil else loss), outputs

        trainer.compute_loss, message = spoiled, ""
        trainer.add_callback(snapshots := Snapshots())
        try:
            trainer.train()
        except FloatingPointError as error:
            message = str(error)
        result = {"message": message, "skipped": trainer._guard.skipped, "after": snapshots.taken}
        result["end"] = weights(trainer.model)
        torch.save(result, out / f"{engine}-{action}-{trainer.args.process_index}.pt")


def grid(engine, out, ranks, cases=GRID):
    """One optimisation step of every case; gradients are compared with those of one process."""
    for version, adv_steps, accumulation in cases:
        examples = make_examples(BATCH * ranks * accumulation)
        case = {"version": version, "adv_steps": adv_steps, "accumulation": accumulation}
        run(engine, f"v{version}K{adv_steps}a{accumulation}", out, ranks, examples=examples, **case)


def scenarios(engine, out, ranks):
    """What else is compared with one process, or between the ranks."""
    joint = {"joint": True, "version": -1, "adv_init_mag": 0.0}  # the random start differs from rank to rank
    adam = {"optim": "adamw_torch", "learning_rate": 1e-2}
    common = {"engine": engine, "out": out, "ranks": ranks}
    group = BATCH * ranks
    run(name="clipped", **common, examples=make_examples(group), adv_steps=2, max_grad_norm=0.1)
    run(name="checkpointing", **common, examples=make_examples(group), adv_steps=2, gradient_checkpointing=True)
    if engine != "one":
        half(engine, out, ranks, "bfloat16")
        run(name="twenty", **common, examples=make_examples(20 * group), dropout=0.2, adv_steps=2, max_grad_norm=1.0,
            **adam)  # fmt: skip
    if engine in BRIEF:
        return
    if engine != "one":
        nonfinite(engine, out, ranks)
    # Three micro-batches in groups of two: the last step is one micro-batch.
    run(name="short", **common, examples=make_examples(3 * group), adv_steps=2, accumulation=2, **joint)
    # Every second micro-batch, all those of the second rank, is of one-token sentences: no anchor there.
    run(name="empty", **common, examples=make_examples(group, ([6] * BATCH + [1] * BATCH) * (ranks // 2)), adv_steps=2)
    run(name="smart", **common, examples=make_examples(group), objective="smart", smart_step_size=1.0,
        smart_epsilon=0.5, smart_noise_std=0.1)  # fmt: skip
    # Batches of two to eight sentences, unevenly over ranks and micro-batches; an even number of them, so that one
    # process cuts them alike.
    run(name="tokens", **common, examples=make_examples(20 * ranks), adv_steps=2, accumulation=2, batch_tokens=26,
        adv_init_mag=0.0)  # fmt: skip
    run(name="all", **common, examples=make_examples(2 * group), negatives="all", ib_partners="all", adv_steps=2,
        accumulation=2, **{**joint, "version": 6})  # fmt: skip
    run(name="packed", **common, examples=make_examples(group), adv_steps=2, packing=True)
    # The likelihood's gradient is the joint batch's where all ranks have as many tokens; without beta, all else is too.
    run(name="club", **common, examples=make_examples(3 * group, [6] * (3 * group)), joint=True, adv_init_mag=0.0,
        version=1, adv_steps=2, beta=0.0, **{**adam, "optim": "sgd"})  # fmt: skip
    if engine in ("ddp", "zero2"):
        for version in (0, 1):
            run(name=f"club{version}", **common, examples=make_examples(20 * group), dropout=0.2, version=version,
                ib_max_length=12, adv_steps=2, **adam)  # fmt: skip


def sharded(engine, out, ranks):
    """What only an engine that shards through transformers' own arguments can be asked."""
    common = {"engine": engine, "out": out, "ranks": ranks, "adv_steps": 3}
    # As the case v6K3a2, asked for in other ways: a reduction in every pass; an accelerate file, which sets variables.
    again = {"examples": make_examples(2 * BATCH * ranks), "accumulation": 2}
    each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    run(name="each", **common, **again, accelerator_config=each)
    file = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    os.environ |= file
    run(name="file", **common, **again, fsdp=None, fsdp_config=None)
    for name in file:
        del os.environ[name]
    for name, checkpointing in (("dropout", False), ("recomputed", True)):
        run(name=name, **common, examples=make_examples(BATCH * ranks), dropout=0.3,
            gradient_checkpointing=checkpointing)  # fmt: skip


def half(engine, out, ranks, dtype):
    """One step in autocast; its gradient is compared between engines."""
    settings = {"examples": make_examples(BATCH * ranks), "adv_steps": 2}
    if engine == "ddp" or engine.startswith("fsdp2"):
        settings["bf16"] = True
    else:
        config = configuration(f"{engine}_bf16")
        config["torch_autocast"]["dtype"] = dtype
        settings["deepspeed"] = config
    run(engine, dtype, out, ranks, **settings)


def resumed(engine, out, ranks):
    """Four steps at once; and two, then a new trainer that goes on from its checkpoint and saves the model."""
    settings = {"examples": make_examples(4 * BATCH * ranks), "dropout": 0.2, "adv_steps": 2, "optim": "adamw_torch",
        "learning_rate": 1e-2, "max_grad_norm": 1.0}  # fmt: skip
    for name, saving in (("whole", {}), ("resumed", {"save_strategy": "steps", "save_steps": 2})):
        trainer, watch = build(engine, name, out, ranks, **settings, **saving)
        before = weights(trainer.model)
        trainer.train()
        if name == "resumed":
            trainer, watch = build(engine, name, out, ranks, **settings)
            trainer.train(resume_from_checkpoint=str(out / f"{engine}-resumed" / "checkpoint-2"))
            trainer.save_model(str(out / f"{engine}-model"))
        record(trainer, watch, before, out / f"{engine}-{name}-{trainer.args.process_index}.pt")


def refusals(out):
    """What the trainer says to settings that would lose the perturbation or its gradient."""
    config = configuration("zero2")
    messages = {}
    for name, settings in (
        ("bf16", {"bf16": True, "deepspeed": config}),
        ("fp16", {"deepspeed": {**config, "fp16": {"enabled": True}}}),
        ("clipped", {"deepspeed": {**config, "torch_autocast": {"enabled": True, "dtype": "float16"}}}),
    ):
        args = InfoBertArguments(str(out / "refused"), use_cpu=True, report_to=[], critic_hidden_dim=20, **settings)
        try:
            InfoBertTrainer(make_model(0.0), args, train_dataset=make_examples(4), data_collator=pad)
        except ValueError as error:
            messages[name] = str(error)
    torch.save(messages, out / f"zero2-refused-{torch.distributed.get_rank()}.pt")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("ranks", type=int)
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--nonfinite", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.nonfinite:
        for engine in args.engines:
            nonfinite(engine, args.out, args.ranks)
        return
    for engine in args.engines:
        grid(engine, args.out, args.ranks, GRID if args.grid else SUITE.get(engine, GRID))
        if not args.grid:
            scenarios(engine, args.out, args.ranks)
            if engine in ("fsdp2", "zero2", "zero3"):
                resumed(engine, args.out, args.ranks)
            if engine == "fsdp2":
                sharded(engine, args.out, args.ranks)
    # Last, for DeepSpeed keeps the loss scaler for every later engine of a process.
    for engine in args.engines if not args.grid else ():
        if engine in ("zero2", "zero3"):
            half(engine, args.out, args.ranks, "float16")
    if "zero2" in args.engines and not args.grid:
        refusals(args.out)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
