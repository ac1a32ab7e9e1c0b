"""transformers' Trainer made reliable: whole checkpoints, exact resumption, no step from what is not finite."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import PreTrainedModel, Trainer

from infobert_fast import checks
from infobert_fast.training.arguments import InfoBertArguments
from infobert_fast.training.engines.choice import runner_type
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.reliability import checkpoints
from infobert_fast.training.reliability.guard import NonfiniteGuard
from infobert_fast.training.reliability.order import SameOrder, examples_of
from infobert_fast.training.reliability.resume import find_checkpoint, frozen_digest, run_record
from infobert_fast.training.steps.replay import RandomReplay
from infobert_fast.training.termlog import TermLog

__all__ = ["ReliableTrainer"]

PROGRESS = "progress_{}.pt"  # a rank's logs since the last line, in a checkpoint beside its random state


class ReliableTrainer(Trainer):
    """The part of :class:`infobert_fast.InfoBertTrainer` that knows nothing of InfoBERT.

    What extends it makes a run's parts in :meth:`_begin_run`, says :meth:`_begin_step` at a step's first micro-batch,
    and gives the terms of each pass to ``self._guard.note`` and those of each micro-batch to ``self._terms.add``.
    """

    args: InfoBertArguments
    model: PreTrainedModel

    _runner: Runner | None  # of the present run, from its first step on

    def __init__(self, model: Any, args: InfoBertArguments, **kwargs: Any) -> None:
        self._trial: Any = None
        super().__init__(model, args, **kwargs)
        self._base = frozen_digest(self.model)  # before an engine cuts the weights up
        self.add_callback(SameOrder())
        self._found: str | None = None  # by checkpoint_of, for the train() that follows
        self._staging: Path | None = None  # while a checkpoint is being written, where
        self._guard, self._terms = NonfiniteGuard(args.nonfinite), TermLog()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. ``resume_from_checkpoint`` may also be ``"auto"``: the newest whole checkpoint of
        ``output_dir``, a fresh start where there is none. True takes that checkpoint too, and fails without one.

        Raises:
            ValueError: for a checkpoint that is not whole, or of a run with other settings, naming them.
            FloatingPointError: at a loss or gradient that is not finite, unless ``nonfinite="skip"``.
        """
        found, self._found = self.checkpoint_of(resume_from_checkpoint), None
        return super().train(found, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, which calls it for a run, and again for a smaller batch where memory did not suffice."""
        self._begin_run()
        return super()._inner_training_loop(*args, **kwargs)

    def _begin_run(self) -> None:
        """Make what a run is made of, so that nothing of an earlier one goes into it."""
        self._guard, self._terms = NonfiniteGuard(self.args.nonfinite), TermLog()
        self._left_out = 0  # steps since the last log line

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """As the Trainer's, which calls it for a training between making the optimiser and giving it to the engine."""
        if training:
            self._check_optimizer()
        return super()._wrap_model(model, training, dataloader)

    def _check_optimizer(self) -> None:
        """Refuse a run in which a parameter would never move.

        Raises:
            ValueError: naming parameters that require a gradient and are not in the optimiser.
        """
        if (groups := getattr(self.optimizer, "param_groups", None)) is None:
            return  # an engine makes its own, of all parameters
        held = {id(parameter) for group in groups for parameter in group["params"]}
        left_out = [n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in held]
        if left_out:
            raise ValueError(
                f"`optimizers` holds {len(held)} parameters, and not {', '.join(left_out[:4])}"
                f"{f' and {len(left_out) - 4} more' if len(left_out) > 4 else ''}, which require a gradient and would "
                f"never move: build the optimiser after the trainer, which gives the model its critic; or freeze them"
            )

    def checkpoint_of(self, request: str | bool | None) -> str | None:
        """The folder from which ``train(request)`` goes on, read and found whole; None for a fresh start. Call it on
        all ranks: rank 0 clears away what a killed run left and looks. :meth:`train` does not read its answer again.

        Raises:
            ValueError, OSError: as :meth:`train`, which need not have begun to say so.
        """
        if request is not None and request == self._found:
            return self._found
        output_dir, found, problem = Path(self._get_output_dir(None)), None, None
        if self.is_world_process_zero():
            try:
                if self.args.save_strategy != "no":
                    checks.writable("output_dir", output_dir, folder=True)
                checkpoints.sweep(output_dir)
                pickled, changes = runner_type(self.accelerator).pickled, self.args.resume_with_changes
                found = find_checkpoint(request, output_dir, self._record, pickled=pickled, with_changes=changes)
            except (ValueError, OSError) as error:
                problem = error
        found, problem = broadcast_object_list([found, problem])
        if problem is not None:
            raise problem
        self._found = cast("str | None", found)
        return self._found

    def _record(self) -> dict[str, Any]:
        engine = runner_type(self.accelerator)
        name = engine.class_of(self.model).__name__
        return run_record(
            self.args, self.model, name, self.train_dataset, engine.describe(self.accelerator), self._base
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's, into a temporary folder, which becomes the checkpoint when all ranks have written."""
        run_dir = Path(self._get_output_dir(trial))
        self._staging = checkpoints.staging(run_dir, self.state.global_step)
        final = run_dir / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(self._staging / final.name):
                self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(self._staging / final.name / "trainer_state.json"))
                self._check_shared(self._staging / final.name)
                checkpoints.publish(self._staging, self._record())
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            raise OSError(
                f"the checkpoint of step {self.state.global_step} could not be written to {run_dir} ({error}); earlier "
                f"ones are as they were: mend the cause and start again with resume_from_checkpoint='auto'"
            ) from error
        finally:
            self._staging = None
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(run_dir, self.args.save_total_limit, {final, *([Path(best)] if best else [])})
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(final))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: called while the checkpoint is being written. ``_save_checkpoint`` pushes the whole one."""

    def _check_shared(self, folder: Path) -> None:
        """Whether every rank's files are in the folder that is about to be called whole."""
        if self.args.save_on_each_node or self.args.save_only_model:
            return
        missing = [rank for rank in range(self.args.world_size) if not (folder / PROGRESS.format(rank)).is_file()]
        if missing:
            raise OSError(
                f"`output_dir` lacks the files of ranks {missing}: it must be a folder that all nodes share, or set "
                f"save_on_each_node=True"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As the Trainer's; outside a checkpoint each file is written aside and renamed, the weights last."""
        folder = Path(output_dir or self._get_output_dir(None))
        if self._staging is not None or not self.args.should_save:
            self._write_model(folder, state_dict)
            return
        with checkpoints.replacing(folder) as temporary:
            self._write_model(temporary, state_dict)

    def _write_model(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        """Write the model's files, whole or in a checkpoint that is being built."""
        super()._save(str(folder), state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        """As the Trainer's; with it what this rank has not logged yet."""
        super()._save_rng_state(output_dir)
        progress = {
            "loss": self._tr_loss,
            "logged_step": self._globalstep_last_logged,
            "terms": self._terms.state_dict(),
            "skipped_steps": self._guard.skipped,
            "left_out": self._left_out,
        }
        torch.save(progress, Path(output_dir, PROGRESS.format(self.args.process_index)))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer's, called once, where the training goes on."""
        super()._load_rng_state(checkpoint)
        file = Path(checkpoint or "", PROGRESS.format(self.args.process_index))
        if checkpoint is not None and file.is_file():  # a rank that the checkpoint does not know has none
            progress = torch.load(file, map_location=self.args.device.type, weights_only=True)
            self._tr_loss.copy_(progress["loss"])
            self._total_loss_scalar = -progress["loss"].item()  # train_loss is of the steps of this call
            self._globalstep_last_logged = progress["logged_step"]
            self._terms.load_state_dict(progress["terms"])
            self._guard.skipped, self._left_out = progress["skipped_steps"], progress["left_out"]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, which would go one step beyond the last where a run resumed there is within an epoch."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the random state is left as it was, so that training does not depend on evaluations."""
        replay = RandomReplay(self.args.device)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            replay.rewind()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; a training log line tells of skipped steps."""
        if "loss" in logs and self._guard.skipped:
            logs = {**logs, "skipped_steps": self._guard.skipped}
        super().log(logs, start_time)

    def _begin_step(self) -> None:
        """Remember the logs as they are before this optimisation step, should it have to be left out."""
        if self.args.nonfinite == "skip":
            self._logs_before = self._tr_loss.clone(), copy.copy(self._terms)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As the Trainer's, which asks for it between a step's last backward and the optimiser; the guard's place.

        An engine with a step of its own has stepped by now, or has left the step out where the norm is not finite. A
        float16 loss scaler will do so; overflows are its business until its scale falls below 1.
        """
        assert self._runner is not None
        grad_norm = self._runner.gradient_norm(super()._get_grad_norm(model, grad_norm))
        if self._runner.leaves_overflow_to_scaler():
            self._guard.forget()
        elif not self._guard.passes(
            grad_norm,
            step=self.state.global_step,
            rank=self.args.process_index,
            gather=gather_object,
            examples=self._examples_of,
        ):
            cast(Any, self.optimizer).zero_grad()  # torch's optimisers pass over a parameter that has no gradient
            self._tr_loss, self._terms = self._logs_before
            self._left_out += 1
        return grad_norm

    def _maybe_log_save_evaluate(self, tr_loss: Any, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, which divides the sum of losses by the steps since the last line, those left out too."""
        if self.control.should_log:
            self._make_up_for_left_out()
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; its mean over the run divides by all steps likewise."""
        self._make_up_for_left_out()
        return super()._finalize_training(*args, **kwargs)

    def _make_up_for_left_out(self) -> None:
        steps = self.state.global_step - self._globalstep_last_logged
        if self._left_out:
            self._tr_loss *= steps / max(steps - self._left_out, 1)
        self._left_out = 0

    def _examples_of(self, micro_step: int) -> list[int] | None:
        """The numbers in the training set of this rank's examples in a micro-batch of the current step."""
        loader: Any = self.callback_handler.train_dataloader
        accumulation = self.args.gradient_accumulation_steps
        epoch, update = divmod(self.state.global_step, -(-len(loader) // accumulation))
        return examples_of(loader, epoch, update * accumulation + micro_step)
