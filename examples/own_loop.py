"""InfoBERT in a training loop of your own, on an engine of your choice: no Trainer, every line of a step in sight.

    torchrun --nproc_per_node 2 examples/own_loop.py --engine fsdp2

A small RoBERTa learns generated sentence pairs, on CPUs in a few minutes. Swap in your model and data; the step stays.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, RobertaConfig, RobertaForSequenceClassification, set_seed

from infobert_fast.adversary import FreeLB
from infobert_fast.data.collation import WithLengths
from infobert_fast.data.demo import demo_corpus, demo_tokenizer
from infobert_fast.data.tokenization import tokenize
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.accelerated import AcceleratedRunner
from infobert_fast.training.engines.deepspeed import DeepSpeedRunner, keep_critic_whole
from infobert_fast.training.engines.fsdp2 import Fsdp2Runner
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.critic import attach_critic
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step, step_seed

RATE = 7e-4
CUDA = torch.cuda.is_available()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="ddp", choices=["ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--steps", type=int, default=400, help="of the optimiser")
    parser.add_argument("--batch", type=int, default=16, help="sentence pairs of a rank in a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of an optimisation step")
    parser.add_argument("--output", type=Path, default=Path("own_loop"))
    return parser.parse_args()


def prepare(model: Any, args: argparse.Namespace, last: Callable[[], bool]) -> tuple[Runner, Optimizer | None]:
    """The engine's runner, and the optimiser where the engine has no step of its own.

    ``last`` tells whether the present micro-batch is the last of its optimisation step.
    """
    if args.engine == "ddp":
        accelerator = Accelerator(cpu=not CUDA)
        wrapped, optimizer = accelerator.prepare(model, AdamW(model.parameters(), RATE))
        return AcceleratedRunner(PerturbedModel(model), wrapped, accelerator), optimizer
    if args.engine == "fsdp2":
        # The critic is a unit of its own: it runs when the input gradient has freed the root's weights.
        for unit in (*model.roberta.encoder.layer, model.mi_estimator, model):
            fully_shard(unit)
        return Fsdp2Runner(PerturbedModel(model), model, last), AdamW(model.parameters(), RATE)
    import deepspeed

    keep_critic_whole(model)  # stage 3 gathers the critic's weights before its forward
    config = {
        "train_micro_batch_size_per_gpu": args.batch,
        "gradient_accumulation_steps": args.accumulation,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": int(args.engine[-1])},
        # On GPUs add "torch_autocast": {"enabled": true, "dtype": "bfloat16"}.
        "optimizer": {"type": "AdamW", "params": {"lr": RATE, "torch_adam": not CUDA}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    return DeepSpeedRunner(PerturbedModel(model), engine, last), None


def endless(loader: DataLoader[Any]) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def main() -> None:
    args = arguments()
    set_seed(0)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if CUDA else torch.device("cpu")
    if CUDA:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if CUDA else "gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    corpus = demo_corpus(size=8000, eval_size=500)
    tokenizer = demo_tokenizer(corpus)
    mine = {name: tokenize(split.shard(ranks, rank), tokenizer, 40) for name, split in corpus.items()}
    collate = WithLengths(DataCollatorWithPadding(tokenizer))  # counts tokens on the host: nothing waits for the device
    train = endless(DataLoader(mine["train"], args.batch, shuffle=True, drop_last=True, collate_fn=collate))

    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=48,
            num_labels=3,
            initializer_range=0.1,  # at 0.02 a model this small does not leave chance
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    critic = attach_critic(model, hidden_dim=64)  # in the model, so that it is reduced, clipped, sharded and saved
    micro = 0
    runner, optimizer = prepare(model, args, lambda: micro == args.accumulation - 1)
    objective = Objective(
        FreeLB(adv_lr=0.04, adv_init_mag=0.08, adv_steps=2),
        InformationBottleneck("tokens"),
        AnchoredFeature(cl=0.5, ch=0.9),
        critic,
        beta=5e-4,
        alpha=5e-3,
    )

    model.train()
    for step in range(args.steps):
        for micro in range(args.accumulation):
            inputs = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in next(train).items()}
            known = {name: inputs.pop(name) for name in ("lengths", "left_padded")}  # what our collator adds
            batch = Batch(inputs, **known, weight=1 / args.accumulation)
            with contextlib.nullcontext() if micro == args.accumulation - 1 else runner.deferred():
                terms = infobert_step(objective, batch, runner, step_seed(0, rank, step, micro))
        if optimizer is None:
            runner.step()  # DeepSpeed's, which clips too
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0 and (step + 1) % 20 == 0:
            print(f"step {step + 1}: " + ", ".join(f"{name} {float(term):.3f}" for name, term in terms.mean.items()))

    runner.model.remove()
    model.eval()
    for name in ("test_clean", "test_adversarial"):
        right = torch.zeros(2, device=device)
        for batch in DataLoader(mine[name], args.batch, collate_fn=collate):
            inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                guess = model(**inputs).logits.argmax(-1)
            right += torch.stack([(guess == batch["labels"].to(guess.device)).sum(), torch.tensor(len(guess))])
        torch.distributed.all_reduce(right)
        if rank == 0:
            print(f"{name}: {100 * right[0] / right[1]:.1f} %")

    whole = contextlib.nullcontext()
    if args.engine == "zero3":  # each rank holds a share
        import deepspeed

        whole = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with whole:
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            model.save_pretrained(args.output, state_dict=state)  # opens in stock transformers
            tokenizer.save_pretrained(args.output)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
