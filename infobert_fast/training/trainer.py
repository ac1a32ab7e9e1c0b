"""``InfoBertTrainer``: transformers' Trainer with InfoBERT's step in place of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from infobert_fast.data.collation import WithLengths
from infobert_fast.data.packing import Packing
from infobert_fast.estimators import CLUB
from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, InformationBottleneck
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.batches import by_tokens, check_batches, grouped_by_length, sizes_differ
from infobert_fast.training.engines.choice import runner_for, runner_type
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.look import check_architecture, first_look
from infobert_fast.training.models.compiled import compiled_for_steps
from infobert_fast.training.models.critic import CRITIC, attach_critic, critic_of, keep_critic, restore_critic
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.models.perturbation import WordEmbeddings
from infobert_fast.training.models.stock import stock_of, text_config
from infobert_fast.training.reliability.reliable import ReliableTrainer
from infobert_fast.training.steps.infobert import Objective, infobert_step, step_seed
from infobert_fast.training.steps.replay import check_device
from infobert_fast.training.steps.smoothness import SmoothnessObjective, divergence_for, smoothness_step
from infobert_fast.training.throughput import ModuleTimer, Throughput, peak_tflops_of, throughput_line

__all__ = ["InfoBertTrainer"]

logger = logging.getLogger(__name__)

LEARNED_BOUND = "learned_bound.pt"  # versions 0 and 1, in a checkpoint beside optimizer.pt
BESIDE = ("lengths", "left_padded", "packing")  # what our collation adds to a batch, and a model does not take


class InfoBertTrainer(ReliableTrainer):
    """Fine-tunes a Hugging Face encoder, or a decoder as a classifier, with InfoBERT's regularisers.

    Use it as ``transformers.Trainer``, with :class:`InfoBertArguments`. Each step accumulates the exact gradient of

        (1/K) sum_k [ task_loss + beta * IB - alpha * AFR ]   over K = adv_steps perturbed passes,

    as a mean over the sentences of the optimisation step: a micro-batch weighs, in every term, as many as it holds, on
    whatever rank. The critic is a submodule of the model, ``mi_estimator``; the saved folder opens in stock
    transformers without this package. Losses and bounds are logged, in nats, as means with their ranges.

    What a run is made of is made when it begins. ``alpha``, ``beta``, ``adv_*``, ``norm_type``, ``cl``, ``ch`` and the
    weights of the other objectives are read at each step, so that a callback may schedule them; any other argument of
    the package that changes during a run is an error.

    Compare "standard" with this trainer at ``version=-1, adv_steps=1, adv_init_mag=0``: the stock Trainer multiplies an
    encoder's classification loss by accumulation steps and ranks.

    Args:
        model, args, train_dataset, eval_dataset, data_collator, processing_class, model_init, compute_loss_func,
        compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as for
            ``transformers.Trainer``. ``compute_loss_func`` gets the number of labels of its own micro-batch and
            returns that micro-batch's mean. Optimisers must hold the critic: build them after the trainer, or let
            the trainer build them.

    Raises:
        ValueError: for a device other than a CPU or CUDA's, a model without word embeddings or in half precision,
            several GPUs in one process, or an engine whose settings would train something else: each with the setting
            to change.

    Example:
        >>> args = InfoBertArguments("out", learning_rate=2e-5, adv_steps=3, version=6)
        >>> InfoBertTrainer(model, args, train_dataset=train, processing_class=tokenizer).train()
    """

    args: InfoBertArguments
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: InfoBertArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
    ) -> None:
        if not isinstance(args, InfoBertArguments):
            raise TypeError(
                f"`args` was a {type(args).__name__}; it must be an InfoBertArguments, which extends TrainingArguments"
            )
        check_device(args.device)
        if model is not None:
            _check_model(model)
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        runner_type(self.accelerator).check(self.accelerator, args)
        # An encoder's forward takes **kwargs, from which the stock Trainer concludes that it divides its loss by
        # `num_items_in_batch`. It does not; the loss would come out multiplied by accumulation and ranks.
        self.model_accepts_loss_kwargs = False
        self.data_collator = WithLengths(self.data_collator, args.packing)
        check_batches(args, self.train_dataset, self.accelerator)
        # Ranks whose batches differ in sentences say so through the host, where no device has to be waited for.
        uneven = args.world_size > 1 and sizes_differ(args, self.train_dataset, self.accelerator)
        self._hosts = torch.distributed.new_group(backend="gloo") if uneven else None
        self._throughput = Throughput(args.device)
        self.add_callback(self._throughput)
        self._bottleneck: InformationBottleneck | None = None
        self._anchored: AnchoredFeature | None = None
        self._runner: Runner | None = None
        self._step_sentences, self._place = 0, (-1, 0)
        if model is not None:
            self._fit_critic()

    # A run.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; rates, FLOP utilisation and peak memory are added to the metrics."""
        try:
            with compiled_for_steps() if self.args.torch_compile else contextlib.nullcontext():
                output = super().train(*args, **kwargs)
        finally:
            self._release()
        peak = self.args.peak_tflops
        if peak is None and (self.args.bf16 or self.args.fp16):
            peak = peak_tflops_of(self.args.device)
        output.metrics.update(self._throughput.report(self.accelerator.gather, peak))
        logger.info(throughput_line(output.metrics))
        return output

    def _begin_run(self) -> None:
        """Make what the run is made of: called before the optimiser, and again for another batch size or trial."""
        super()._begin_run()
        args = self.args
        args.check()
        if args.smoothness() is not None:
            divergence_for(self.model.config)  # refuses several labels at once
        self._release()
        self._place = (-1, 0)  # optimisation step and micro-step within it
        self._frozen = args.fixed()
        if args.torch_compile and self.accelerator.state.dynamo_plugin.dynamic is None:
            self.accelerator.state.dynamo_plugin.dynamic = True  # or the second length would be compiled for again
        self._fit_critic()
        if not any(p.requires_grad for name, p in self.model.named_parameters() if f"{CRITIC}." not in name):
            raise ValueError(
                "`model` has no parameter to train but the critic's: unfreeze some; of `peft`, load the adapter with "
                "is_trainable=True"
            )
        runner_type(self.accelerator).prepare(self.model, self.accelerator)
        self._bottleneck = self._make_bottleneck()
        self._anchored = None
        if args.version in AFR_VERSIONS:
            self._anchored = AnchoredFeature(args.cl, args.ch, args.negatives, args.seed)
        if args.anchor_source == "previous":
            logger.warning(
                "anchor_source='previous' changes the method: anchors after a step's first pass are ranked by the pass "
                "before, and every ascent follows the whole loss; results are not InfoBERT's as published"
            )
        regularizers = [module for module in (self._bottleneck, self._anchored) if module is not None]
        self._throughput.timer = ModuleTimer(args.device, regularizers) if args.profile_regularizers else None

    def _make_bottleneck(self) -> InformationBottleneck | None:
        kind = VERSIONS[self.args.version]
        if kind is None:
            return None
        bottleneck = InformationBottleneck(
            kind,
            self.args.ib_sampling,
            self.args.ib_partners,
            hidden_size=text_config(self.model).hidden_size,
            max_length=self.args.ib_max_length,
            average=self.args.world_size > 1,
        ).to(self.args.device, next(self.model.parameters()).dtype)
        if self.args.world_size > 1:
            for parameter in bottleneck.parameters():
                torch.distributed.broadcast(parameter.data, src=0)
        return bottleneck

    def _fit_critic(self) -> None:
        """Give the model the critic that the version asks for: that of its checkpoint where it has one."""
        if self.args.version in AFR_VERSIONS:
            attach_critic(self.model, self.args.critic_hidden_dim, self.args.critic_checkpoint)
        elif critic_of(self.model) is not None and self._trial is not None:
            delattr(stock_of(self.model), CRITIC)

    def _first_look(self, model: nn.Module, batch: Batch) -> Runner:
        """The run's runner, once a look at the first batch has settled what stands for a sentence."""
        bare = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True, keep_torch_compile=False)
        perturbed = PerturbedModel(bare, loss=self._loss, packing=self.args.packing)
        runner = runner_for(self.accelerator, perturbed, model)
        self._runner = runner  # from here on released, whatever happens
        asked = None if self.args.global_feature == "auto" else self.args.global_feature
        self._throughput.flops_per_token = first_look(perturbed, runner.bare, batch, asked)
        perturbed.with_states = self._bottleneck is not None or self._anchored is not None
        return runner

    def _release(self) -> None:
        """Leave the model without our hooks."""
        if self._runner is not None:
            self._runner.model.remove()
            self._runner = None

    # A step.

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Accumulate one micro-batch's gradient; the detached loss it is the gradient of."""
        model.train()
        if callable(train_mode := getattr(self.optimizer, "train", None)):  # schedule-free optimisers have one
            train_mode()
        batch = self._batch_of(self._prepare_inputs(inputs))
        runner = self._runner or self._first_look(model, batch)
        self.args.check_unchanged(self._frozen)
        seed = self._seed()
        if self._place[1] == 0:
            self._begin_step()
        objective = self._objective(batch)
        computed = (batch.input_ids if batch.packing is None else batch.packing.source).numel()
        self._throughput.count(batch.lengths, computed, objective.units, text_config(self.model))
        with self._throughput.timed():
            if isinstance(objective, SmoothnessObjective):
                terms = smoothness_step(objective, batch, runner, seed)
            else:
                terms = infobert_step(objective, batch, runner, seed)
        self._guard.note(self._place[1], terms.passes)
        if self.accelerator.sync_gradients:
            runner.step()
        self._terms.add(terms.mean, weight=len(batch.lengths))
        return terms.mean["loss"]

    def _batch_of(self, inputs: Mapping[str, Any]) -> Batch:
        # The mean over the step's sentences on all ranks: every engine divides by the number of ranks.
        weight = len(inputs["lengths"]) * self.args.world_size / self._step_sentences
        packing = Packing(**inputs["packing"]) if "packing" in inputs else None
        return Batch(_for_the_model(inputs), inputs["lengths"], weight, packing, inputs["left_padded"])

    def _objective(self, batch: Batch) -> Objective | SmoothnessObjective:
        """What the arguments say at this step."""
        args = self.args
        if args.smoothness() is not None:
            kind = divergence_for(self.model.config, batch.inputs.get("labels"))
            return cast(SmoothnessObjective, args.smoothness(kind))
        if self._anchored is not None:
            self._anchored.window(args.cl, args.ch)
        return Objective(
            args.adversary(self.state.global_step),
            self._bottleneck,
            self._anchored,
            critic_of(self.model),
            beta=args.beta,
            alpha=args.alpha,
            anchor_source=args.anchor_source,
        )

    def _loss(self, call: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """The task loss of a micro-batch by :meth:`compute_loss`, which a subclass may have made its own."""
        count = None
        if self.compute_loss_func is not None and isinstance(labels := inputs.get("labels"), Tensor):
            count = (labels != -100).sum()
        result = self.compute_loss(cast(nn.Module, call), dict(inputs), return_outputs=True, num_items_in_batch=count)
        loss, outputs = result if isinstance(result, tuple) else (result, None)
        if count is not None and self.args.average_tokens_across_devices:
            loss = loss / self.args.world_size  # by which the Trainer has multiplied it, for a count over all ranks
        return loss, outputs

    def _seed(self) -> int:
        """This micro-batch's seed, by rank and place in the run, so that a resumed run repeats it."""
        step = self.state.global_step
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        return step_seed(self.args.seed, self.args.process_index, *self._place)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, in the precision of the training; the model's forward knows no ``lengths``."""
        with runner_type(self.accelerator).autocast(self.accelerator):
            return super().prediction_step(model, _for_the_model(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the loss, averaged over ranks, to a training log line."""
        if "loss" in logs:
            logs = {**logs, **self._terms.read(self.accelerator.gather)}
        super().log(logs, start_time)

    # Data.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the Trainer's; with ``batch_tokens``, over batches that are this rank's from the start."""
        loader = super().get_train_dataloader()
        if self.args.batch_tokens is None:
            return loader
        return by_tokens(loader, self.args, self.train_dataset, self.accelerator)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As the Trainer's; groups by length are drawn from seed and epoch alone."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Sized):
            return super()._get_train_sampler(train_dataset)
        return grouped_by_length(self.args, dataset)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; counts the sentences of the optimisation step, on all ranks."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        count = sum(len(batch["lengths"]) for batch in batches)
        if self._hosts is None:
            self._step_sentences = count * self.args.world_size
        else:
            total = torch.tensor(count)
            torch.distributed.all_reduce(total, group=self._hosts)
            self._step_sentences = int(total)
        return batches, items

    # Checkpoints.

    def _write_model(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """And the critic, where what saves the model leaves it out."""
        super()._write_model(folder, state_dict)
        if (critic := critic_of(self.model)) is not None and self.args.should_save:
            keep_critic(critic, folder, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As the Trainer's; the critic is loaded, or the run does not go on."""
        if self.args.version in AFR_VERSIONS:
            restore_critic(attach_critic(self.model, self.args.critic_hidden_dim), resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """As the Trainer's, with the best model's critic; an engine that loads its own state has loaded it."""
        super()._load_best_model()
        critic = critic_of(self.model)
        if critic is not None and not runner_type(self.accelerator).pickled:
            restore_critic(critic, cast(str, self.state.best_model_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the Trainer's; the learned bound, which no engine holds, and its optimiser beside them."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self._club is not None and self.args.should_save:
            state = {"club": self._club.state_dict(), "optimizer": self._club.optimizer.state_dict()}
            torch.save(state, Path(output_dir, LEARNED_BOUND))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._club is not None and checkpoint is not None:
            file = Path(checkpoint, LEARNED_BOUND)
            if not file.is_file():
                raise ValueError(
                    f"{checkpoint} holds no {file.name}, the learned bound of `version` {self.args.version}, which "
                    f"would start anew: go on with the checkpoint's version, or give the folder as the model"
                )
            # Adam counts its steps on the host, and a loaded count stays where it lies: on a device it would be read.
            state = torch.load(file, map_location="cpu", weights_only=True)
            self._club.load_state_dict(state["club"])
            self._club.optimizer.load_state_dict(state["optimizer"])

    @property
    def _club(self) -> CLUB | None:
        """The learned bound of versions 0 and 1."""
        return None if self._bottleneck is None else self._bottleneck.club


def _for_the_model(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in BESIDE}


def _check_model(model: Any) -> None:
    """Refuse, before any work, a model that cannot be perturbed; it is not run."""
    WordEmbeddings(model).remove()
    check_architecture(model)
