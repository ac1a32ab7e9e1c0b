"""The trainings of ranks.py on a model that `peft` has wrapped: alone, or by torchrun under one engine after the other.

python adapted_ranks.py OUT RANKS ENGINE...
"""

import sys
from pathlib import Path

import ranks
import torch
from peft import LoraConfig, get_peft_model

plain = ranks.make_model


def adapted(dropout):
    """The critic is there before `peft` freezes all that it finds."""
    model = plain(dropout)
    torch.manual_seed(1)
    lora = LoraConfig(
        task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False, lora_dropout=dropout
    )
    return get_peft_model(model, lora)


def main():
    ranks.make_model = adapted
    out, count, *engines = sys.argv[1:]
    torch.set_num_threads(1)
    for engine in engines:
        examples = ranks.make_examples(ranks.BATCH * int(count))
        ranks.run(engine, "lora", Path(out), int(count), examples=examples, adv_steps=2)
        if engine != "one":
            ranks.resumed(engine, Path(out), int(count))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
