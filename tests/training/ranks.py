"""A script of tiny trainings for test_ranks.py: run alone, by torchrun (DDP), or by torchrun with a DeepSpeed file.

    python ranks.py OUT RANKS [--deepspeed FILE]

RANKS is how many ranks' data one optimisation step sees. Run alone with RANKS = 2, one process plays both: the ranks'
micro-batches follow each other in its accumulation, or, where a scenario asks for it, stand in one joint batch. Each
process writes ``OUT/<scenario>-<rank>.pt``.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

from infobert_fast import InfoBertArguments, InfoBertTrainer
from infobert_fast.training.critic import attach_critic

BATCH = 4  # sentences of a rank in a micro-batch


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


class Watch(TrainerCallback):
    """Counts gradient reductions under DDP and notes in which dtype the encoder works."""

    def __init__(self):
        self.trainer, self.reduced, self.reduced_at, self.dtypes, self.inputs = None, 0, [], set(), set()
        self.sentences = []  # of each forward

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.bert.encoder.layer[0].attention.self.query.register_forward_hook(
            lambda module, args, out: self.dtypes.add(str(out.dtype))
        )
        model.bert.embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: (
                self.inputs.add(str(kwargs["inputs_embeds"].dtype)) if kwargs.get("inputs_embeds") is not None else None
            ),
            with_kwargs=True,
        )
        wrapped = self.trainer.model_wrapped
        if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):

            def hook(group, bucket):
                self.reduced += bucket.buffer().numel()
                return default_hooks.allreduce_hook(group, bucket)

            wrapped.register_comm_hook(None, hook)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.reduced_at.append(self.reduced)


def run(name, out, ranks, deepspeed, *, examples, joint=False, dropout=0.0, accumulation=1, seed=None, **settings):
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    played = ranks // world  # how many ranks this process plays
    model = make_model(dropout)
    if settings.get("version", 6) not in (4, 5, 6) or "objective" in settings:
        del model.mi_estimator
    args = InfoBertArguments(
        str(out / name),
        use_cpu=True,
        per_device_train_batch_size=BATCH * (played if joint else 1),
        gradient_accumulation_steps=accumulation * (1 if joint else played),
        train_sampling_strategy="random" if "batch_tokens" in settings else "sequential",
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        critic_hidden_dim=20,
        cl=0.5,
        ch=0.9,
        alpha=0.3,
        beta=0.05,
        adv_lr=0.3,
        max_grad_norm=settings.pop("max_grad_norm", 0.0),
        lr_scheduler_type="constant",
        optim=settings.pop("optim", "sgd"),
        learning_rate=settings.pop("learning_rate", 1.0),
        deepspeed=settings.pop("config", deepspeed),
        **settings,
    )
    watch = Watch()
    trainer = InfoBertTrainer(model, args, train_dataset=examples, data_collator=pad, callbacks=[watch])
    watch.trainer = trainer
    model.register_forward_pre_hook(
        lambda module, args, kwargs: watch.sentences.append(len(kwargs["attention_mask"])) if module.training else None,
        with_kwargs=True,
    )
    if seed is not None:  # noise that does not tell ranks from micro-batches
        trainer._seed = lambda: seed
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trainer.train()
    after = {key: value.detach().clone() for key, value in model.named_parameters()}
    club = trainer._club
    torch.save(
        {
            "before": before,
            "after": after,
            "movement": {key: before[key] - after[key] for key in before},
            "club": {} if club is None else dict(club.state_dict()),
            "logs": [line for line in trainer.state.log_history if "loss" in line],
            "reduced_at": watch.reduced_at,
            "parameters": sum(value.numel() for value in before.values()),
            "dtypes": sorted(watch.dtypes),
            "inputs": sorted(watch.inputs),
            "engine": type(trainer.model_wrapped).__name__,
            "steps": trainer.state.global_step,
            "sentences": watch.sentences,
        },
        out / f"{name}-{args.process_index}.pt",
    )


def refusals(out, deepspeed):
    """What the trainer says to DeepSpeed settings that would lose the perturbation or its gradient."""
    config = json.loads(Path(deepspeed).read_text())
    third = {**config, "zero_optimization": {"stage": 3}}
    messages = {}
    for name, settings in (("bf16", {"bf16": True, "deepspeed": config}), ("zero3", {"deepspeed": third})):
        args = InfoBertArguments(str(out / "refused"), use_cpu=True, report_to=[], critic_hidden_dim=20, **settings)
        try:
            InfoBertTrainer(make_model(0.0), args, train_dataset=make_examples(4), data_collator=pad)
        except ValueError as error:
            messages[name] = str(error)
    torch.save(messages, out / f"refused-{torch.distributed.get_rank()}.pt")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("ranks", type=int)
    parser.add_argument("--deepspeed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    common = {"out": args.out, "ranks": args.ranks, "deepspeed": args.deepspeed}
    still = {"adv_init_mag": 0.0}  # the random start differs from rank to rank

    run("task", **common, examples=make_examples(16), joint=True, version=-1, adv_steps=1, accumulation=2, **still)
    # Three micro-batches in groups of two: the last step is one micro-batch.
    run("short", **common, examples=make_examples(24), joint=True, version=-1, adv_steps=2, accumulation=2, **still)
    run("terms", **common, examples=make_examples(16), version=6, adv_steps=3, accumulation=2, **still)
    run("version6", **common, examples=make_examples(32), dropout=0.2, adv_steps=3, accumulation=2, max_grad_norm=1.0,
        adv_init_mag=0.5, optim="adamw_torch", learning_rate=1e-2)  # fmt: skip
    # Every second micro-batch, all those of the second rank, is of one-token sentences: no anchor there.
    run("empty", **common, examples=make_examples(16, ([6] * BATCH + [1] * BATCH) * 2), adv_steps=2, **still)
    run("smart", **common, examples=make_examples(16), objective="smart", accumulation=2, seed=7,
        smart_epsilon=0.3, smart_step_size=2.0, smart_noise_std=0.2)  # fmt: skip
    # Batches of two to eight sentences, unevenly over ranks and micro-batches; an even number of them, so that one
    # process cuts them alike.
    run("tokens", **common, examples=make_examples(40), adv_steps=2, accumulation=2, batch_tokens=26, **still)
    run("all", **common, examples=make_examples(16), joint=True, negatives="all", ib_partners="all", adv_steps=2,
        accumulation=2, **still)  # fmt: skip
    run("club", **common, examples=make_examples(16), version=1, adv_steps=2, learning_rate=1e-2, **still)
    if args.deepspeed:
        config = json.loads(Path(args.deepspeed).read_text())
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        run("autocast", **common, examples=make_examples(16), adv_steps=2, learning_rate=1e-2, config=config)
        refusals(args.out, args.deepspeed)
    elif torch.distributed.is_initialized():
        run("autocast", **common, examples=make_examples(16), adv_steps=2, learning_rate=1e-2, bf16=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
