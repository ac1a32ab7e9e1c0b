"""Every argument outside its range is refused by name, with what it was and what it may be."""

import math

import pytest
import transformers

from infobert_fast import InfoBertArguments
from infobert_fast.training.arguments import OPEN
from infobert_fast.training.steps.smoothness import R3F, SMART, RDrop, SmoothnessObjective


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "`alpha` was -0.1; it must be a finite number >= 0"),
        ({"alpha": math.nan}, "`alpha` was nan"),
        ({"beta": -1}, "`beta` was -1"),
        ({"beta": math.inf}, "`beta` was inf"),
        ({"beta": math.nan}, "`beta` was nan"),
        ({"version": 7}, "`version` was 7; it must be one of -1, 0, 1, 2, 3, 4, 5, 6"),
        ({"version": -2}, "`version` was -2"),
        ({"cl": 0.9, "ch": 0.5}, "`cl` was 0.9 and `ch` 0.5; `cl` must not exceed `ch`: swap them"),
        ({"cl": -0.1}, r"`cl` was -0.1; it must be a finite number in \[0.0, 1.0\]"),
        ({"ch": 1.1}, "`ch` was 1.1"),
        ({"ch": math.nan}, "`ch` was nan"),
        ({"adv_steps": 0}, "`adv_steps` was 0; it must be an integer of at least 1; 1 with adv_init_mag 0 is standard"),
        ({"adv_steps": 1.5}, "`adv_steps` was 1.5"),
        ({"adv_lr": -1e-3}, "`adv_lr` was -0.001"),
        ({"adv_init_mag": -1.0}, "`adv_init_mag` was -1.0"),
        ({"adv_max_norm": -1.0}, "`adv_max_norm` was -1.0; it must be a finite number >= 0.0; 0 means no projection"),
        ({"adv_max_norm": math.nan}, "`adv_max_norm` was nan"),
        ({"norm_type": "l1"}, "`norm_type` was 'l1'; it must be one of 'l2', 'linf'"),
        ({"ib_sampling": "none"}, "`ib_sampling` was 'none'; it must be one of 'exact', 'sampled'"),
        ({"negatives": "none"}, "`negatives` was 'none'; it must be one of 'chunk', 'batch', 'all'"),
        ({"ib_partners": "none"}, "`ib_partners` was 'none'; it must be one of 'batch', 'all'"),
        ({"ib_partners": "all", "ib_sampling": "sampled"}, "`ib_partners` was 'all' with the sampled tokens bound"),
        ({"ib_partners": "all", "version": 1}, "`ib_partners` was 'all' with the exact learned-tokens bound"),
        ({"adv_start_step": -1}, "`adv_start_step` was -1; it must be an integer of at least 0"),
        ({"adv_start_step": 0.5}, "`adv_start_step` was 0.5"),
        ({"adv_start_step": True}, "`adv_start_step` was True"),
        ({"critic_hidden_dim": 0}, "`critic_hidden_dim` was 0"),
        ({"ib_max_length": 0}, "`ib_max_length` was 0"),
        ({"anchor_source": "next"}, "`anchor_source` was 'next'; it must be one of 'current', 'previous'"),
        ({"anchor_source": "previous", "adv_steps": 1}, "was 'previous' with `adv_steps` 1 and .*: use 'current'"),
        ({"anchor_source": "previous", "version": 3}, "was 'previous' with `adv_steps` 3 and `version` 3"),
        ({"batch_tokens": 0}, "`batch_tokens` was 0; it must be None or an integer of at least 1"),
        (
            {"batch_tokens": 9, "train_sampling_strategy": "sequential"},
            "`train_sampling_strategy` was 'sequential' with `batch_tokens` 9, which has an order of its own",
        ),
        (
            {"batch_tokens": 9, "train_sampling_strategy": "random", "dataloader_drop_last": True},
            "`dataloader_drop_last` was True with `batch_tokens`",
        ),
        ({"peak_tflops": 0.0}, "`peak_tflops` was 0.0"),
        (
            {"objective": "trades"},
            "`objective` was 'trades'; it must be one of 'infobert', 'vanilla', 'freelb', 'smart', 'r3f', 'rdrop'",
        ),
        (
            {"objective": "vanilla", "version": 6},
            "`version` was 6 with `objective` 'vanilla', which makes it -1: leave",
        ),
        ({"objective": "freelb", "version": 3}, "`version` was 3 with `objective` 'freelb', which makes it -1"),
        ({"objective": "smart", "adv_steps": 3}, "`adv_steps` was 3 with `objective` 'smart', which makes it 1"),
        ({"objective": "r3f", "adv_init_mag": 0.1}, "`adv_init_mag` was 0.1 with `objective` 'r3f'"),
        ({"objective": "rdrop", "adv_start_step": 5}, "`adv_start_step` was 5 with `objective` 'rdrop'"),
        ({"objective": "vanilla", "adv_clean_pass": True}, "`adv_clean_pass` was True without an adversary"),
        (
            {"objective": "freelb", "adv_steps": 1, "adv_init_mag": 0.0},
            "with `objective` 'freelb', which would perturb nothing: .* use objective 'vanilla'",
        ),
        ({"smart_weight": -1.0}, "`smart_weight` was -1.0"),
        ({"smart_epsilon": math.nan}, "`smart_epsilon` was nan"),
        ({"smart_step_size": -1.0}, "`smart_step_size` was -1.0"),
        ({"smart_noise_std": -1.0}, "`smart_noise_std` was -1.0"),
        ({"smart_steps": 0}, "`smart_steps` was 0"),
        ({"r3f_weight": -1.0}, "`r3f_weight` was -1.0"),
        ({"r3f_scale": math.inf}, "`r3f_scale` was inf"),
        ({"r3f_noise": "cauchy"}, "`r3f_noise` was 'cauchy'; it must be one of 'uniform', 'normal'"),
        ({"rdrop_weight": -1.0}, "`rdrop_weight` was -1.0"),
        ({"smoothness_dropout": "none"}, "`smoothness_dropout` was 'none'; it must be one of 'fresh', 'same'"),
        ({"objective": "rdrop", "smoothness_dropout": "same"}, "`smoothness_dropout` was 'same' with R-Drop"),
        ({"nonfinite": "ignore"}, "`nonfinite` was 'ignore'; it must be one of 'stop', 'skip'"),
        ({"nonfinite": "skip", "version": 1}, "`nonfinite` was 'skip' with `version` 1; .*use 'stop'"),
        ({"critic_checkpoint": "a", "version": 3}, "`critic_checkpoint` was 'a' with `version` 3, which has no critic"),
        (
            {"adv_clean_pass": True, "adv_steps": 1, "adv_init_mag": 0.0},
            "`adv_clean_pass` was True without an adversary, .*: leave it False",
        ),
        (
            {"ddp_find_unused_parameters": True},
            "`ddp_find_unused_parameters` was True with `version` 6; .* leave it unset",
        ),
        ({"fsdp_config": {"version": 2}}, "`fsdp_config` was set and `fsdp` was not"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "asked for use_reentrant=True; .* use {'use_reentrant': False}",
        ),
    ],
    ids=str,
)
def test_out_of_range(make_arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"cl": 0.5, "ch": 0.5},
        {"cl": 0, "ch": 1},
        {"alpha": 0, "beta": 0.0},
        {"version": 3, "ddp_find_unused_parameters": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"adv_steps": 1, "adv_init_mag": 0.0},
    ],
    ids=str,
)
def test_at_the_edge(make_arguments, settings):
    make_arguments(**settings)


def test_defaults_are_those_published_for_anli(tmp_path):
    args = InfoBertArguments(str(tmp_path))
    assert (args.alpha, args.beta, args.version, args.cl, args.ch) == (5e-3, 5e-3, 6, 0.5, 0.9)
    assert (args.adv_lr, args.adv_init_mag, args.adv_max_norm, args.adv_steps, args.norm_type) == (
        4e-2,
        8e-2,
        0.0,
        3,
        "l2",
    )
    assert (args.adv_start_step, args.ib_sampling, args.negatives, args.critic_hidden_dim) == (0, "exact", "chunk", 300)


@pytest.mark.parametrize(
    ("objective", "version", "adv_steps", "adv_init_mag", "method"),
    [
        ("infobert", 6, 3, 8e-2, None),
        ("freelb", -1, 3, 8e-2, None),
        ("vanilla", -1, 1, 0.0, None),
        ("smart", -1, 1, 0.0, SMART(1.0, 1e-5, 1e-3, 1e-5, 1)),
        ("r3f", -1, 1, 0.0, R3F(1.0, 1e-5, "uniform")),
        ("rdrop", -1, 1, 0.0, RDrop(1.0)),
    ],
)
def test_objectives_decide_what_is_unset(make_arguments, objective, version, adv_steps, adv_init_mag, method):
    args = make_arguments(objective=objective)
    assert (args.version, args.adv_steps, args.adv_init_mag) == (version, adv_steps, adv_init_mag)
    assert args.smoothness() == (None if method is None else SmoothnessObjective(method))
    assert make_arguments(**{name: getattr(args, name) for name in ("objective", *OPEN)}) == args  # and may be said


def test_losses_are_neither_read_nor_replaced_by_default(tmp_path):
    assert transformers.TrainingArguments(str(tmp_path)).logging_nan_inf_filter is True
    assert InfoBertArguments(str(tmp_path)).logging_nan_inf_filter is False


def test_a_published_command_line_carries_over(tmp_path):
    (args,) = transformers.HfArgumentParser(InfoBertArguments).parse_args_into_dataclasses(
        f"--output_dir {tmp_path} --alpha 5e-3 --beta 5e-5 --version 6 --cl 0.75 --ch 0.95 --adv_lr 2e-2 "
        "--adv_init_mag 2e-2 --adv_max_norm 4e-2 --adv_steps 2 --norm_type linf".split()
    )
    assert (args.beta, args.cl, args.ch, args.adv_max_norm, args.adv_steps) == (5e-5, 0.75, 0.95, 4e-2, 2)
    assert args.adversary().norm_type == "linf"


def test_arguments_survive_their_own_dictionary(make_arguments):
    """The Trainer logs and saves them as JSON."""
    args = make_arguments(alpha=0.25, adv_start_step=3)
    assert args.to_dict()["alpha"] == 0.25
    assert '"adv_start_step": 3' in args.to_json_string()


def test_the_adversary_of_a_step(make_arguments):
    args = make_arguments(adv_start_step=2, adv_steps=3)
    assert not args.adversary(1).perturbs
    assert args.adversary(1).adv_steps == 1
    assert args.adversary(2) == args.adversary()
    assert args.adversary().adv_steps == 3
