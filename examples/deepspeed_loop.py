"""InfoBERT in a training loop of your own, on DeepSpeed: no Trainer, every line of a step in sight.

    torchrun --nproc_per_node 2 examples/deepspeed_loop.py --stage 3
    deepspeed --num_gpus 8 examples/deepspeed_loop.py

A small RoBERTa learns generated sentence pairs, on CPUs in a few minutes. Swap in your model and data; the step stays.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, RobertaConfig, RobertaForSequenceClassification, set_seed

from infobert_fast.adversary import FreeLB
from infobert_fast.data.collation import WithLengths
from infobert_fast.data.demo import demo_corpus, demo_tokenizer
from infobert_fast.data.tokenization import tokenize
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.deepspeed import DeepSpeedRunner, keep_critic_whole
from infobert_fast.training.models.critic import attach_critic
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step, step_seed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, default=2, choices=[0, 1, 2, 3], help="of ZeRO")
    parser.add_argument("--steps", type=int, default=400, help="of the optimiser")
    parser.add_argument("--batch", type=int, default=16, help="sentence pairs of a rank in a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of an optimisation step")
    parser.add_argument("--output", type=Path, default=Path("deepspeed_loop"))
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", "0")))
    return parser.parse_args()


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": args.batch,
        "gradient_accumulation_steps": args.accumulation,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": args.stage},
        # On GPUs leave torch_adam out, and add "torch_autocast": {"enabled": true, "dtype": "bfloat16"}.
        "optimizer": {"type": "AdamW", "params": {"lr": 7e-4, "torch_adam": not torch.cuda.is_available()}},
    }


def endless(loader: DataLoader[Any]) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def main() -> None:
    args = arguments()
    set_seed(0)
    deepspeed.init_distributed()
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
    keep_critic_whole(model)  # before the engine is made
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=configuration(args))

    objective = Objective(
        FreeLB(adv_lr=0.04, adv_init_mag=0.08, adv_steps=2),
        InformationBottleneck("tokens"),
        AnchoredFeature(cl=0.5, ch=0.9),
        critic,
        beta=5e-4,
        alpha=5e-3,
    )

    micro = 0
    runner = DeepSpeedRunner(PerturbedModel(model), engine, boundary=lambda: micro == args.accumulation - 1)
    engine.train()
    for step in range(args.steps):
        for micro in range(args.accumulation):
            inputs = {name: v.to(engine.device) if isinstance(v, Tensor) else v for name, v in next(train).items()}
            batch = Batch(inputs, inputs.pop("lengths"), weight=1 / args.accumulation)
            terms = infobert_step(objective, batch, runner, step_seed(0, rank, step, micro))
        runner.step()  # clips, too
        if rank == 0 and (step + 1) % 20 == 0:
            print(f"step {step + 1}: " + ", ".join(f"{name} {float(term):.3f}" for name, term in terms.mean.items()))

    runner.model.remove()
    engine.eval()
    for name in ("test_clean", "test_adversarial"):
        right = torch.zeros(2, device=engine.device)
        for batch in DataLoader(mine[name], args.batch, collate_fn=collate):
            inputs = {key: batch[key].to(engine.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                guess = model(**inputs).logits.argmax(-1)
            right += torch.stack([(guess == batch["labels"].to(guess.device)).sum(), torch.tensor(len(guess))])
        torch.distributed.all_reduce(right)
        if rank == 0:
            print(f"{name}: {100 * right[0] / right[1]:.1f} %")

    with deepspeed.zero.GatheredParameters(list(model.parameters())):  # stage 3 holds a share on each rank
        if rank == 0:
            model.save_pretrained(args.output)  # opens with AutoModelForSequenceClassification.from_pretrained
            tokenizer.save_pretrained(args.output)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
