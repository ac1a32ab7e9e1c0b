"""The trainer's arguments: transformers' own and the published hyper-parameters under their published names."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from infobert_fast import checks
from infobert_fast.adversary import FreeLB
from infobert_fast.functional import NormType
from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, Negatives, Sampling

__all__ = ["InfoBertArguments"]


@dataclass
class InfoBertArguments(TrainingArguments):
    """``transformers.TrainingArguments`` plus InfoBERT's; defaults are those published for ANLI with RoBERTa-large.

    Raises:
        ValueError: for a value outside what an argument may be, naming both.
    """

    alpha: float = field(
        default=5e-3, metadata={"help": "Weight of the anchored-feature regulariser (a lower bound, pushed up)."}
    )
    beta: float = field(
        default=5e-3, metadata={"help": "Weight of the information bottleneck (an upper bound, pushed down)."}
    )
    version: int = field(
        default=6,
        metadata={
            "help": "-1 no regulariser; 0, 1 learned CLUB (whole embeddings, tokens); 2, 3 CLUBv2 (sentences, tokens); "
            "4 anchored features alone; 5 = 2 and anchored; 6 = 3 and anchored (the paper)."
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
        default=8e-2, metadata={"help": "Magnitude of the perturbation's random start; 0 for none."}
    )
    adv_max_norm: float = field(
        default=0.0, metadata={"help": "Largest norm of the perturbation; 0 for no projection."}
    )
    adv_steps: int = field(
        default=3, metadata={"help": "Passes per step; 1 with adv_init_mag 0 is standard fine-tuning."}
    )
    norm_type: NormType = field(default="l2", metadata={"help": "Norm of the perturbation, per sentence: l2 or linf."})
    adv_start_step: int = field(
        default=0, metadata={"help": "Optimisation step from which the adversary acts; standard passes before it."}
    )
    ib_sampling: Sampling = field(
        default="exact",
        metadata={"help": "exact: every partner, in closed form; sampled: one random partner a row, as the reference."},
    )
    negatives: Negatives = field(
        default="chunk",
        metadata={
            "help": "chunk: contrast within shuffled chunks of the batch size, as the reference; batch: all pairs."
        },
    )
    critic_hidden_dim: int = field(default=300, metadata={"help": "Width of the InfoNCE critic."})
    ib_max_length: int = field(default=128, metadata={"help": "Version 0: length the embedding layer is padded to."})

    # The stock default reads the loss on the host at every micro-step and replaces a NaN by an average.
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Replace NaN losses in the logs; off, since it hides them and waits for the device."},
    )
    # The critic works outside the wrapped forward, where DistributedDataParallel would take its weights for unused.
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Must stay False where anchored features are used under DistributedDataParallel."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("alpha", self.alpha, low=0.0)
        checks.number("beta", self.beta, low=0.0)
        checks.choice("version", self.version, VERSIONS)
        if isinstance(self.adv_start_step, bool) or not isinstance(self.adv_start_step, int) or self.adv_start_step < 0:
            raise ValueError(f"`adv_start_step` was {self.adv_start_step!r}; it must be an integer of at least 0")
        checks.positive_integer("critic_hidden_dim", self.critic_hidden_dim)
        checks.positive_integer("ib_max_length", self.ib_max_length)
        checks.choice("ib_sampling", self.ib_sampling, ("exact", "sampled"))
        AnchoredFeature(self.cl, self.ch, self.negatives)
        self.adversary()
        # None lets the Trainer choose, and it chooses True.
        if self.ddp_find_unused_parameters is not False and self.version in AFR_VERSIONS:
            raise ValueError(
                f"`ddp_find_unused_parameters` was {self.ddp_find_unused_parameters} with `version` {self.version}; "
                f"DistributedDataParallel would take the critic for unused: leave it False"
            )
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
        return FreeLB(self.adv_lr, self.adv_init_mag, self.adv_max_norm, self.adv_steps, self.norm_type)
