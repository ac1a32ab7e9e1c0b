"""What a run is going to be, said without running it: steps, tokens, parameters, memory by part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import datasets
import numpy as np

from infobert_fast.training.engines.choice import runner_type
from infobert_fast.training.models.critic import critic_of
from infobert_fast.training.models.stock import text_config
from infobert_fast.training.trainer import InfoBertTrainer

__all__ = ["Plan", "plan_of"]

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """Counts over the whole run and all ranks, and an estimate of one rank's memory in MiB by part.

    ``tokens`` are real ones an epoch, None where a stream does not tell; ``longest`` is the longest example, of a
    stream the longest that is not cut. Activations are those of one pass over the largest micro-batch: with SDPA or
    another fused attention about 34 bytes a token, layer and hidden unit in half precision (Korthikanti et al., 2022),
    twice that in float32, 2 where every layer is checkpointed. A pass's graph is gone before the next begins; where two
    predictions are compared (SMART, R3F, R-Drop), both are held.
    """

    examples: int | None  # windows, for questions
    tokens: int | None
    longest: int
    ranks: int
    accumulation: int
    epochs: float
    steps: int
    warmup_steps: int
    passes: int
    parameters: int
    critic_parameters: int
    memory: dict[str, float]

    def rows(self) -> list[tuple[str, str]]:
        """The plan as names and values."""
        said = [
            ("examples an epoch", "streamed" if self.examples is None else f"{self.examples:,}"),
            ("real tokens an epoch", "streamed" if self.tokens is None else f"{self.tokens:,}"),
            ("longest example, tokens", f"{self.longest:,}"),
            ("ranks x accumulation", f"{self.ranks} x {self.accumulation}"),
            ("epochs", f"{self.epochs:g}"),
            ("optimisation steps", f"{self.steps:,}"),
            ("warm-up steps", f"{self.warmup_steps:,}"),
            ("passes a step", str(self.passes)),
            ("parameters", f"{self.parameters:,}"),
            ("of these the critic's", f"{self.critic_parameters:,}"),
        ]
        said += [(f"{part}, MiB a rank (estimate)", f"{size:,.0f}") for part, size in self.memory.items()]
        return [*said, ("sum, MiB a rank (estimate)", f"{sum(self.memory.values()):,.0f}")]


def plan_of(trainer: InfoBertTrainer, max_length: int) -> Plan:
    """The plan of a trainer that was built and not started, on data cut to ``max_length`` tokens."""
    args = trainer.args
    dataset = trainer.train_dataset
    lengths = np.array(dataset["length"]) if isinstance(dataset, datasets.Dataset) else None
    batch = args.per_device_train_batch_size
    accumulation = args.gradient_accumulation_steps
    if args.max_steps > 0:
        steps = args.max_steps
        batches = len(trainer.get_train_dataloader()) if lengths is not None else None
        epochs = steps * accumulation / batches if batches else math.nan
    else:
        updates = math.ceil(len(trainer.get_train_dataloader()) / accumulation)
        steps, epochs = math.ceil(args.num_train_epochs * updates), args.num_train_epochs
    longest = int(lengths.max()) if lengths is not None else max_length
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    critic = critic_of(trainer.model)
    return Plan(
        examples=len(lengths) if lengths is not None else None,
        tokens=int(lengths.sum()) if lengths is not None else None,
        longest=longest,
        ranks=args.world_size,
        accumulation=accumulation,
        epochs=epochs,
        steps=steps,
        warmup_steps=args.get_warmup_steps(steps),
        passes=args.adversary().passes if args.smoothness() is None else 2,
        parameters=parameters,
        critic_parameters=0 if critic is None else sum(parameter.numel() for parameter in critic.parameters()),
        memory=_memory(trainer, parameters, max(args.batch_tokens, longest) if args.batch_tokens else batch * longest),
    )


def _memory(trainer: InfoBertTrainer, parameters: int, tokens: int) -> dict[str, float]:
    """One rank's memory in MiB: float32 weights and gradients, AdamW's two moments, and one pass's activations."""
    args, config = trainer.args, text_config(trainer.model)
    shared = runner_type(trainer.accelerator).shares(trainer.accelerator)
    whole = 4 * parameters / MIB
    layers = config.num_hidden_layers
    a_unit = 2 if args.gradient_checkpointing else 34
    precision = 1 if args.bf16 or args.fp16 else 2
    graphs = 1 if args.smoothness() is None else 2
    activations = graphs * a_unit * precision * tokens * config.hidden_size * layers / MIB
    return {
        "weights": whole / shared[0],
        "gradients": whole / shared[1],
        "optimiser": 2 * whole / shared[2],
        "activations": activations,
    }
