"""``InfoBertTrainer``: transformers' Trainer with InfoBERT's step in place of its own."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from infobert_fast.data.batching import TokenBatches, token_lengths
from infobert_fast.data.collation import WithLengths
from infobert_fast.data.packing import Packing
from infobert_fast.estimators import CLUB
from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, InformationBottleneck
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.critic import CRITIC, attach_critic, load_critic
from infobert_fast.training.encoder import (
    check_bidirectional,
    check_embedded_forward,
    inputs_beside,
    word_embeddings_of,
)
from infobert_fast.training.engines import accelerated, check_deepspeed_config, keep_critic_whole
from infobert_fast.training.order import EpochOrder
from infobert_fast.training.packing import PackedEncoder, unpack
from infobert_fast.training.reliable import ReliableTrainer
from infobert_fast.training.smoothness import SmoothnessObjective, divergence_for, smoothness_step
from infobert_fast.training.step import Objective, Pass, infobert_step, step_seed
from infobert_fast.training.throughput import (
    ModuleTimer,
    Throughput,
    linear_flops_per_token,
    peak_tflops_of,
    throughput_line,
)

__all__ = ["InfoBertTrainer"]

logger = logging.getLogger(__name__)

HEADS = ("logits", "start_logits", "end_logits")  # what models for sentences and for answers call their predictions
LEARNED_BOUND = "learned_bound.pt"  # versions 0 and 1, in a checkpoint beside optimizer.pt


class InfoBertTrainer(ReliableTrainer):
    """Fine-tunes any Hugging Face encoder with InfoBERT's regularisers, alone or under a FreeLB adversary.

    Use it as ``transformers.Trainer``, with :class:`InfoBertArguments`; all but model and args by keyword.
    Each step accumulates the exact gradient of

        (1/K) sum_k [ task_loss + beta * IB - alpha * AFR ]   over K = adv_steps perturbed passes,

    as a mean over the sentences of the optimisation step: a micro-batch weighs, in every term, as many as it holds, on
    whatever rank. The critic is a submodule of the model,
    ``mi_estimator``; the saved folder opens in stock transformers without this package. Losses and bounds are logged,
    in nats, as means with their ranges.

    Compare "standard" with this trainer at ``version=-1, adv_steps=1, adv_init_mag=0``: the stock Trainer multiplies an
    encoder's classification loss by accumulation steps and ranks.

    Raises:
        ValueError: for a model without input embeddings or in half precision, several GPUs in one process, DeepSpeed
            with half-precision weights, or FSDP: each with the setting to change.

    Example:
        >>> args = InfoBertArguments("out", learning_rate=2e-5, adv_steps=3, version=6)
        >>> InfoBertTrainer(model, args, train_dataset=train, processing_class=tokenizer).train()
    """

    args: InfoBertArguments
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel | None = None, args: InfoBertArguments | None = None, **kwargs: Any
    ) -> None:
        if not isinstance(args, InfoBertArguments):
            raise TypeError(
                f"`args` was a {type(args).__name__}; it must be an InfoBertArguments, which extends TrainingArguments"
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs are visible to one process, which would mean nn.DataParallel; launch one process "
                f"per GPU (torchrun --nproc_per_node {args.n_gpu} ...), or set CUDA_VISIBLE_DEVICES to one of them"
            )
        if model is not None:
            _prepare(model, args)
        super().__init__(model, args, **kwargs)
        # An encoder's forward takes **kwargs, from which the stock Trainer concludes that it divides its loss by
        # `num_items_in_batch`. It does not; the loss would come out multiplied by accumulation and ranks.
        self.model_accepts_loss_kwargs = False
        self.data_collator = WithLengths(self.data_collator, args.packing)
        iterable = isinstance(self.train_dataset, IterableDataset)
        if iterable and args.world_size > 1 and self.accelerator.dispatch_batches is not False:
            raise ValueError(
                "`train_dataset` is iterable, and accelerate would send its batches from rank 0, as tensors alone: "
                "pass accelerator_config={'dispatch_batches': False} and shard the dataset by rank"
            )
        if iterable and args.batch_tokens is not None:
            raise ValueError(
                "`batch_tokens` was set for an iterable `train_dataset`, whose lengths are not known: unset"
            )
        if args.batch_tokens is not None and self.train_dataset is not None:
            self._token_batches()  # refuses a budget that is too small
        # Ranks whose batches differ in sentences say so through the host, where no device has to be waited for.
        uneven = iterable or args.batch_tokens is not None or args.train_sampling_strategy == "batch_rebalance"
        uneven = uneven or not self.accelerator.even_batches
        self._hosts = torch.distributed.new_group(backend="gloo") if uneven and args.world_size > 1 else None
        self._step_sentences = 0
        self._refuse_unsupported_engines()
        kind = VERSIONS[args.version]
        self._bottleneck: InformationBottleneck | None = None
        if kind is not None:
            self._bottleneck = InformationBottleneck(
                kind,
                args.ib_sampling,
                args.ib_partners,
                hidden_size=self.model.config.hidden_size,
                max_length=args.ib_max_length,
                average=args.world_size > 1,
            ).to(args.device, next(word_embeddings_of(self.model).parameters()).dtype)
            if args.world_size > 1:
                for parameter in self._bottleneck.parameters():
                    torch.distributed.broadcast(parameter.data, src=0)
        self._anchored = (
            AnchoredFeature(args.cl, args.ch, args.negatives, args.seed) if args.version in AFR_VERSIONS else None
        )
        self._smoothness = args.smoothness()
        if self._smoothness is not None:
            self._smoothness = args.smoothness(divergence_for(self.model.config))
        if args.anchor_source == "previous":
            logger.warning(
                "anchor_source='previous' changes the method: anchors after a step's first pass are ranked by the pass "
                "before, and every ascent follows the whole loss; results are not InfoBERT's as published"
            )
        self._throughput = Throughput(args.device)
        if args.profile_regularizers:
            regularizers = [module for module in (self._bottleneck, self._anchored) if module is not None]
            self._throughput.timer = ModuleTimer(args.device, regularizers)
        self.add_callback(self._throughput)
        self._place = (-1, 0)  # optimisation step and micro-step within it
        self._checked: nn.Module | None = None
        self._packed: PackedEncoder

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        return _prepare(cast(PreTrainedModel, super().call_model_init(trial)), self.args)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As the Trainer's, with our words for a critic that does not fit."""
        if self._anchored is not None:
            load_critic(attach_critic(self.model, self.args.critic_hidden_dim), resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the Trainer's; the learned bound, which no engine holds, and its optimiser beside them."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self._club is not None and self.args.should_save:
            state = {"club": self._club.state_dict(), "optimizer": self._club.optimizer.state_dict()}
            torch.save(state, Path(output_dir, LEARNED_BOUND))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._club is not None and checkpoint is not None and Path(checkpoint, LEARNED_BOUND).is_file():
            # Adam counts its steps on the host, and a loaded count stays where it lies: on a device it would be read.
            state = torch.load(Path(checkpoint, LEARNED_BOUND), map_location="cpu", weights_only=True)
            self._club.load_state_dict(state["club"])
            self._club.optimizer.load_state_dict(state["optimizer"])

    @property
    def _club(self) -> CLUB | None:
        """The learned bound of versions 0 and 1."""
        return None if self._bottleneck is None else self._bottleneck.club

    def _refuse_unsupported_engines(self) -> None:
        if self.is_fsdp_enabled:
            raise ValueError(
                "`fsdp` is set; the input gradient does not pass through FSDP's hooks: use DDP or DeepSpeed ZeRO-2 or 3"
            )
        if self.is_deepspeed_enabled:
            check_deepspeed_config(self.accelerator.state.deepspeed_plugin.hf_ds_config)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; rates, FLOP utilisation and peak memory are added to the metrics."""
        output = super().train(*args, **kwargs)
        peak = self.args.peak_tflops
        if peak is None and (self.args.bf16 or self.args.fp16):
            peak = peak_tflops_of(self.args.device)
        output.metrics.update(self._throughput.report(self.accelerator.gather, peak))
        logger.info(throughput_line(output.metrics))
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the Trainer's; with ``batch_tokens``, over batches that are this rank's from the start."""
        loader = super().get_train_dataloader()
        if self.args.batch_tokens is None:
            return loader
        batches = self._token_batches()
        same = ("collate_fn", "num_workers", "pin_memory", "worker_init_fn", "prefetch_factor", "persistent_workers")
        loader = DataLoader(loader.dataset, batch_sampler=batches, **{name: getattr(loader, name) for name in same})
        return prepare_data_loader(
            loader,
            device=self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=self.accelerator.non_blocking,
        )

    def _token_batches(self) -> TokenBatches:
        return TokenBatches(
            token_lengths(self.train_dataset, self.args.length_column_name),
            cast(int, self.args.batch_tokens),
            ranks=self.args.world_size,
            rank=self.args.process_index,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As the Trainer's, which would group by a column that is read from disk for every comparison, and otherwise
        in a resumed epoch.
        """
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Sized):
            return super()._get_train_sampler(train_dataset)
        lengths = token_lengths(dataset, self.args.length_column_name)
        group = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochOrder(LengthGroupedSampler(group, lengths=lengths), seed)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; counts the sentences of the optimisation step, on all ranks."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        count = torch.tensor(sum(len(batch["lengths"]) for batch in batches))
        if self._hosts is None:
            count *= self.args.world_size
        else:
            torch.distributed.all_reduce(count, group=self._hosts)
        self._step_sentences = int(count)
        return batches, items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Accumulate one micro-batch's gradient; the detached loss it is the gradient of."""
        model.train()
        if callable(train_mode := getattr(self.optimizer, "train", None)):  # schedule-free optimisers have one
            train_mode()
        inputs = self._prepare_inputs(inputs)
        bare = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True, keep_torch_compile=False)
        if self._checked is not bare:
            # Also what lets torch.compile see one graph: transformers installs its hooks for hidden states in a model's
            # first forward, which breaks the graph there; these forwards are uncompiled.
            check_embedded_forward(bare, inputs)
            check_bidirectional(bare)
            self._throughput.per_token = linear_flops_per_token(bare, inputs)
            if self.args.packing:
                self._packed = PackedEncoder(bare)
                self._packed.check(bare, inputs)
            self._checked = bare
        engine = accelerated(self.accelerator, model)
        packing = Packing(**inputs["packing"]) if "packing" in inputs else None
        beside = {**inputs_beside(bare, inputs), "output_hidden_states": True}

        def forward(call: Any, embeddings: Tensor) -> Pass:
            batch = {**beside, "inputs_embeds": embeddings}
            with contextlib.nullcontext() if packing is None else self._packed.rows(packing):
                loss, outputs = self.compute_loss(call, batch, return_outputs=True)
            logits = tuple(outputs[name] for name in HEADS if name in outputs)
            embedded = outputs.hidden_states[0]
            embedded = embedded if packing is None else unpack(packing, embedded)
            return Pass(loss, *convert_to_fp32((embedded, outputs.hidden_states[-1], logits)))

        seed = self._seed()
        if self._place[1] == 0:
            self._begin_step()
        # The mean over the step's sentences on all ranks: DistributedDataParallel and DeepSpeed divide by their number.
        sentences = len(inputs["lengths"])
        step: Callable[..., Mapping[str, Tensor]]
        objective: Objective | SmoothnessObjective
        if self._smoothness is not None:
            objective = self._smoothness
            step = functools.partial(smoothness_step, objective)
        else:
            objective = Objective(
                self.args.adversary(self.state.global_step),
                self._bottleneck,
                self._anchored,
                getattr(bare, CRITIC, None),
                beta=self.args.beta,
                alpha=self.args.alpha,
                anchor_source=self.args.anchor_source,
            )
            step = functools.partial(infobert_step, objective)
        computed = (inputs["input_ids"] if packing is None else packing.source).numel()
        self._throughput.count(inputs["lengths"], computed, objective.units, self.model.config)
        with self._throughput.timed():
            terms = step(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                lengths=inputs["lengths"],
                word_embeddings=word_embeddings_of(bare),
                forward=functools.partial(forward, engine.model),
                backward=lambda loss, last: engine.backward(self._guard.mark(loss), last),
                seed=seed,
                probe=None if engine.probe is None else functools.partial(forward, engine.probe),
                scale=sentences * self.args.world_size / self._step_sentences,
                scale_gradient=engine.scale_gradient,
                defer_reduction=engine.defer_reduction,
                observe=functools.partial(self._guard.note, self._place[1]),
            )
        if self.is_deepspeed_enabled and self.accelerator.sync_gradients:
            self._step_engine(model)
        self._terms.add(terms, weight=sentences)
        return terms["loss"]

    def _seed(self) -> int:
        """This micro-batch's seed, by rank and place in the run, so that a resumed run repeats it."""
        step = self.state.global_step
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        return step_seed(self.args.seed, self.args.process_index, *self._place)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the model's forward knows no ``lengths``."""
        inputs = {name: value for name, value in inputs.items() if name not in ("lengths", "packing")}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, averaged over ranks, to a training log line."""
        if "loss" in logs:
            logs = {**logs, **self._terms.read(self.accelerator.gather)}
        super().log(logs, start_time)


def _prepare(model: PreTrainedModel, args: InfoBertArguments) -> PreTrainedModel:
    """Check that the model can be perturbed, and give it its critic: that of its checkpoint where it has one."""
    word_embeddings_of(model)
    # Attention kernels of the device do not run here, nor weights that ZeRO-3 has scattered: the first step will tell.
    if model.config._attn_implementation in ("sdpa", "eager") and not hasattr(next(model.parameters()), "ds_id"):
        check_bidirectional(model)
    if args.version in AFR_VERSIONS:
        attach_critic(model, args.critic_hidden_dim, args.critic_checkpoint)
        if args.deepspeed_plugin is not None:
            keep_critic_whole(model)
    return model
