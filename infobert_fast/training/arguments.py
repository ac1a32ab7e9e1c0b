"""The trainer's arguments: transformers' own and the published hyper-parameters under their published names."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from infobert_fast import checks
from infobert_fast.adversary import FreeLB
from infobert_fast.functional import NormType
from infobert_fast.regularizers import (
    AFR_VERSIONS,
    VERSIONS,
    AnchoredFeature,
    InformationBottleneck,
    Negatives,
    Partners,
    Sampling,
)
from infobert_fast.training.engines.ready import check_arguments, settle_arguments
from infobert_fast.training.models.feature import FEATURES, Feature
from infobert_fast.training.reliability.guard import Nonfinite
from infobert_fast.training.steps.infobert import AnchorSource
from infobert_fast.training.steps.smoothness import R3F, SMART, Divergence, Noise, RDrop, SmoothnessObjective

__all__ = ["InfoBertArguments", "decided_by"]

ObjectiveName = Literal["infobert", "vanilla", "freelb", "smart", "r3f", "rdrop"]
# Arguments that an objective decides; "infobert" leaves all of them open, at the values published for ANLI.
OPEN: dict[str, Any] = {"version": 6, "adv_init_mag": 8e-2, "adv_steps": 3, "adv_start_step": 0}
STANDARD: dict[str, Any] = {**OPEN, "version": -1, "adv_init_mag": 0.0, "adv_steps": 1}


# Read at each step, so that a callback may schedule them. Every other argument of ours is read when a run begins.
SCHEDULED = {
    *("alpha", "beta", "cl", "ch", "adv_lr", "adv_init_mag", "adv_max_norm", "adv_steps", "norm_type"),
    *("adv_start_step", "adv_clean_pass", "smart_weight", "smart_epsilon", "smart_step_size", "smart_noise_std"),
    *("smart_steps", "r3f_weight", "r3f_scale", "r3f_noise", "rdrop_weight", "smoothness_dropout"),
}


def decided_by(objective: str) -> dict[str, Any]:
    """The arguments that an objective decides, with the only values that they can have beside it."""
    return {"infobert": {}, "freelb": {"version": -1}}.get(objective, STANDARD)


@dataclass
class InfoBertArguments(TrainingArguments):
    """``transformers.TrainingArguments`` plus InfoBERT's; defaults are those published for ANLI with RoBERTa-large.

    Raises:
        ValueError: for a value outside what an argument may be, naming both.
    """

    objective: ObjectiveName = field(
        default="infobert",
        metadata={
            "help": "infobert: `version` and `adv_*` as they are set; vanilla: the task loss alone; freelb: "
            "adversarial training alone; smart, r3f, rdrop: the task loss and a smoothness term, see `smart_*`, "
            "`r3f_*`, `rdrop_*`."
        },
    )
    alpha: float = field(
        default=5e-3, metadata={"help": "Weight of the anchored-feature regulariser (a lower bound, pushed up)."}
    )
    beta: float = field(
        default=5e-3, metadata={"help": "Weight of the information bottleneck (an upper bound, pushed down)."}
    )
    # Unset, an argument of OPEN takes the value that `objective` gives it; from __post_init__ on it has one.
    version: int = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "-1 no regulariser; 0, 1 learned CLUB (whole embeddings, tokens); 2, 3 CLUBv2 (sentences, tokens); "
            "4 anchored features alone; 5 = 2 and anchored; 6 = 3 and anchored (the paper, and if unset)."
        },
    )
    cl: float = field(
        default=0.5, metadata={"help": "Tokens below this quantile of gradient norm are useless, not anchors."}
    )
    ch: float = field(
        default=0.9, metadata={"help": "Tokens from this quantile of gradient norm on are non-robust, not anchors."}
    )
    adv_lr: float = field(default=4e-2, metadata={"help": "Length of one ascent of the perturbation."})
    adv_init_mag: float = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Magnitude of the perturbation's random start, 8e-2 if unset; 0 for none."},
    )
    adv_max_norm: float = field(
        default=0.0, metadata={"help": "Largest norm of the perturbation; 0 for no projection."}
    )
    adv_steps: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Passes per step, 3 if unset; 1 with adv_init_mag 0 is standard fine-tuning."},
    )
    norm_type: NormType = field(default="l2", metadata={"help": "Norm of the perturbation, per sentence: l2 or linf."})
    adv_start_step: int = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Optimisation step from which the adversary acts, 0 if unset; standard passes before it."},
    )
    anchor_source: AnchorSource = field(
        default="current",
        metadata={
            "help": "current: each pass ranks its anchors by its own gradient (the method); previous: later passes by "
            "that of the pass before, 3K + 1 units instead of 4K. Another method: state it beside results."
        },
    )
    adv_clean_pass: bool = field(
        default=False,
        metadata={"help": "One more pass first, without a perturbation; all adv_steps + 1 weigh the same."},
    )
    ib_sampling: Sampling = field(
        default="exact",
        metadata={"help": "exact: every partner, in closed form; sampled: one random partner a row, as the reference."},
    )
    ib_partners: Partners = field(
        default="batch",
        metadata={"help": "A row's partners in the bottleneck: the micro-batch's rows, or those of all ranks (all)."},
    )
    negatives: Negatives = field(
        default="chunk",
        metadata={
            "help": "chunk: contrast within shuffled chunks of the batch size, as the reference; batch: all pairs of "
            "the micro-batch; all: those of all ranks."
        },
    )
    global_feature: Literal["auto", Feature] = field(
        default="auto",
        metadata={
            "help": "What stands for a sentence: the first token's state, the last one's, or the mean of all; auto: "
            "what the model's head reads."
        },
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a micro-batch on a device, padding included: batches of similar lengths and any number "
            "of sentences, in the place of per_device_train_batch_size."
        },
    )
    packing: bool = field(
        default=False,
        metadata={
            "help": "Run the encoder on rows of several sentences instead of padded ones; the rest of the step sees "
            "the padded batch. Needs sdpa attention."
        },
    )
    critic_hidden_dim: int = field(default=300, metadata={"help": "Width of the InfoNCE critic."})
    ib_max_length: int = field(default=128, metadata={"help": "Version 0: length the embedding layer is padded to."})

    smart_weight: float = field(default=1.0, metadata={"help": "SMART: weight of the smoothness term."})
    smart_epsilon: float = field(default=1e-5, metadata={"help": "SMART: largest entry of the perturbation."})
    smart_step_size: float = field(default=1e-3, metadata={"help": "SMART: step of an ascent along the gradient."})
    smart_noise_std: float = field(default=1e-5, metadata={"help": "SMART: deviation of the random start."})
    smart_steps: int = field(default=1, metadata={"help": "SMART: ascents."})
    r3f_weight: float = field(default=1.0, metadata={"help": "R3F: weight of the smoothness term."})
    r3f_scale: float = field(default=1e-5, metadata={"help": "R3F: half width or deviation of the noise."})
    r3f_noise: Noise = field(default="uniform", metadata={"help": "R3F: uniform or normal noise."})
    rdrop_weight: float = field(default=1.0, metadata={"help": "R-Drop: weight of the halved symmetric KL divergence."})
    smoothness_dropout: Literal["fresh", "same"] = field(
        default="fresh",
        metadata={
            "help": "SMART and R3F: fresh dropout masks in the second pass, as the published codes; or the same masks, "
            "so that the two predictions differ by the perturbation alone."
        },
    )

    peak_tflops: float | None = field(
        default=None,
        metadata={
            "help": "A device's peak TFLOP/s at the run's precision, for MFU; known devices in bfloat16 have it."
        },
    )
    profile_regularizers: bool = field(
        default=False, metadata={"help": "Time the regularisers in every sixteenth micro-step and report their share."}
    )
    critic_checkpoint: str | None = field(
        default=None,
        metadata={"help": "File or folder with the critic's weights, a published mi_estimator.bin for one."},
    )
    nonfinite: Nonfinite = field(
        default="stop",
        metadata={
            "help": "At a loss or gradient that is not finite: stop with its cause, or skip the step; all ranks."
        },
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={"help": "Resume a checkpoint of other settings too, with a warning that names them."},
    )

    # The stock default reads the loss on the host at every micro-step and replaces a NaN by an average.
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Replace NaN losses in the logs; off, since it hides them and waits for the device."},
    )

    def __post_init__(self) -> None:
        self._chosen: dict[str, Any] = {}  # arguments of OPEN that `objective` decides, not the user
        self._decide()
        if self.tf32 is None and (self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            # On a GPU the stock Trainer would turn TF32 on for the process: the critic's exact float32 would not be,
            # and Inductor of some releases fails at how it is turned on.
            self.tf32 = False
        settle_arguments(self)
        super().__post_init__()
        self.check()

    def _decide(self) -> None:
        """Give each argument of OPEN that the user left unset the value that the objective gives it.

        Raises:
            ValueError: for one that the user set otherwise.
        """
        checks.choice("objective", self.objective, get_args(ObjectiveName))
        decided = decided_by(self.objective)
        for name, default in OPEN.items():
            value = getattr(self, name)
            if value is None or (name in self._chosen and value == self._chosen[name]):
                self._chosen[name] = decided.get(name, default)
                setattr(self, name, self._chosen[name])
            elif name in decided and value != decided[name]:
                raise ValueError(
                    f"`{name}` was {value} with `objective` {self.objective!r}, which makes it {decided[name]}: leave "
                    f"it unset, or use objective 'infobert', which takes every `{name}`"
                )

    def fixed(self) -> dict[str, Any]:
        """The package's arguments that cannot change while a run goes on, by name."""
        names = (name for name in InfoBertArguments.__annotations__ if name not in SCHEDULED)
        return {name: getattr(self, name) for name in names}

    def check_unchanged(self, fixed: dict[str, Any]) -> None:
        """Refuse a change, since the run began, of an argument that was read then.

        Raises:
            ValueError: naming the argument and both values.
        """
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` was {value!r} when the run began and is {getattr(self, name)!r} now; it is read at the "
                    f"beginning alone: set it before train(). {', '.join(sorted(SCHEDULED))} may change during a run"
                )

    def check(self) -> None:
        """Refuse values outside what an argument may be, and combinations that cannot work; a run begins with it.

        Raises:
            ValueError: naming the argument, its value and what it may be.
        """
        self._decide()
        checks.number("alpha", self.alpha, low=0.0)
        checks.number("beta", self.beta, low=0.0)
        checks.choice("version", self.version, VERSIONS)
        checks.choice("global_feature", self.global_feature, ("auto", *FEATURES))
        if isinstance(self.adv_start_step, bool) or not isinstance(self.adv_start_step, int) or self.adv_start_step < 0:
            raise ValueError(f"`adv_start_step` was {self.adv_start_step!r}; it must be an integer of at least 0")
        checks.positive_integer("critic_hidden_dim", self.critic_hidden_dim)
        checks.positive_integer("batch_tokens", self.batch_tokens, optional=True)
        strategy = str(getattr(self.train_sampling_strategy, "value", self.train_sampling_strategy))
        if self.batch_tokens is not None and strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"`train_sampling_strategy` was {strategy!r} with `batch_tokens` {self.batch_tokens}, which has an "
                f"order of its own: leave one of them unset"
            )
        if self.batch_tokens is not None and self.dataloader_drop_last:
            raise ValueError("`dataloader_drop_last` was True with `batch_tokens`, which cuts no batch short: unset it")
        checks.positive_integer("ib_max_length", self.ib_max_length)
        InformationBottleneck(
            VERSIONS[self.version] or "tokens", self.ib_sampling, self.ib_partners, hidden_size=1, max_length=1
        )
        AnchoredFeature(self.cl, self.ch, self.negatives)
        adversary = self.adversary()
        if self.objective == "freelb" and not adversary.perturbs:
            raise ValueError(
                "`adv_steps` was 1 and `adv_init_mag` 0 with `objective` 'freelb', which would perturb nothing: raise "
                "one, or use objective 'vanilla'"
            )
        if self.packing and self.torch_compile:
            raise ValueError("`packing` and `torch_compile` were both True, which is not tested together: unset one")
        if self.peak_tflops is not None:
            checks.number("peak_tflops", self.peak_tflops, low=1e-3)
        checks.choice("anchor_source", self.anchor_source, ("current", "previous"))
        if self.anchor_source == "previous" and (self.adv_steps == 1 or self.version not in AFR_VERSIONS):
            raise ValueError(
                f"`anchor_source` was 'previous' with `adv_steps` {self.adv_steps} and `version` {self.version}; it "
                f"needs a pass before the last (adv_steps >= 2) and anchors (version 4, 5 or 6): use 'current'"
            )
        checks.choice("smoothness_dropout", self.smoothness_dropout, ("fresh", "same"))
        self._methods()
        self.smoothness()
        checks.choice("nonfinite", self.nonfinite, ("stop", "skip"))
        if self.nonfinite == "skip" and self.version in (0, 1):
            raise ValueError(
                f"`nonfinite` was 'skip' with `version` {self.version}; the learned bound's own optimiser steps within "
                f"the pass and cannot be held back: use 'stop'"
            )
        if self.critic_checkpoint is not None and self.version not in AFR_VERSIONS:
            raise ValueError(
                f"`critic_checkpoint` was {self.critic_checkpoint!r} with `version` {self.version}, which has no "
                f"critic: leave it unset, or use version {', '.join(map(str, AFR_VERSIONS))}"
            )
        check_arguments(self, critic=self.version in AFR_VERSIONS)
        checkpointing = self.gradient_checkpointing_kwargs  # a dict by now: TrainingArguments has parsed it
        if self.gradient_checkpointing and isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"):
            raise ValueError(
                "`gradient_checkpointing_kwargs` asked for use_reentrant=True; it cannot give the perturbation's "
                "gradient: use {'use_reentrant': False}"
            )

    def adversary(self, step: int | None = None) -> FreeLB:
        """The adversary at an optimisation step, none before ``adv_start_step``; for None the configured one."""
        if step is not None and step < self.adv_start_step:
            return FreeLB()
        return FreeLB(
            self.adv_lr, self.adv_init_mag, self.adv_max_norm, self.adv_steps, self.norm_type, self.adv_clean_pass
        )

    def smoothness(self, kind: Divergence = "symmetric_kl") -> SmoothnessObjective | None:
        """The objective's comparison of two predictions by a divergence; None where it has none."""
        if self.objective not in ("smart", "r3f", "rdrop"):
            return None
        return SmoothnessObjective(self._methods()[self.objective], kind, self.smoothness_dropout == "same")

    def _methods(self) -> dict[str, SMART | R3F | RDrop]:
        return {
            "smart": SMART(
                self.smart_weight, self.smart_epsilon, self.smart_step_size, self.smart_noise_std, self.smart_steps
            ),
            "r3f": R3F(self.r3f_weight, self.r3f_scale, self.r3f_noise),
            "rdrop": RDrop(self.rdrop_weight),
        }
