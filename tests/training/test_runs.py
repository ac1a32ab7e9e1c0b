"""What a run is made of is made when it begins; what may be scheduled is read at each step; the rest is refused."""

import copy

import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

from infobert_fast.training.arguments import SCHEDULED

STRONG = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_lr": 0.3, "adv_init_mag": 0.5, "critic_hidden_dim": 20}
SMART = {"objective": "smart", "smart_epsilon": 0.5, "smart_step_size": 1.0, "smart_noise_std": 0.1}


class At(TrainerCallback):
    """Sets arguments at the end of the first step."""

    def __init__(self, **changes):
        self.changes = changes

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            for name, value in self.changes.items():
                setattr(args, name, value)


@pytest.fixture
def train(make_model, make_examples, make_trainer):
    """The log lines of a small training."""

    def run(*, callbacks=None, dropout=0.2, **settings):
        settings = {"learning_rate": 0.0, "max_grad_norm": 1e9, "max_steps": 2, **settings}
        model = make_model(dropout=dropout, num_hidden_layers=1)
        trainer = make_trainer(model, make_examples(8), callbacks=callbacks, **settings)
        trainer.remove_callback(PrinterCallback)
        torch.manual_seed(3)
        trainer.train()
        return lines_of(trainer)

    return run


def lines_of(trainer):
    """Losses, terms and the gradient's norm."""
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return [{k: v for k, v in line.items() if k not in ("epoch", "learning_rate", "step")} for line in lines]


# ---- a search over arguments


@pytest.mark.parametrize(
    ("name", "values", "others"),
    [
        ("cl", [0.1, 0.6], {}),
        ("ch", [0.5, 0.9], {}),
        ("negatives", ["chunk", "batch"], {}),
        ("version", [3, 6], {}),
        ("critic_hidden_dim", [8, 20], {}),
        ("objective", ["infobert", "vanilla"], {}),
        ("smart_weight", [0.5, 2.0], SMART),
        ("smart_steps", [1, 2], SMART),
    ],
)
def test_a_trial_of_a_search_is_a_fresh_run(make_model, make_examples, make_trainer, name, values, others):
    """Two trials by Optuna, each with the loss of a trainer of its own that was given the value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    base = {"alpha": 5.0, "cl": 0.2, "ch": 0.8, "critic_hidden_dim": 20, **others} if not others else dict(others)
    base |= {"max_steps": 2, "learning_rate": 0.05, "per_device_train_batch_size": 2}
    base = {k: v for k, v in base.items() if k != name}

    def make(**settings):
        trainer = make_trainer(
            None,
            make_examples(8),
            eval_dataset=make_examples(8, seed=1),
            model_init=lambda: make_model(num_hidden_layers=1),
            **base,
            **settings,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    expected = {}
    for value in values:
        trainer = make(**{name: value})
        trainer.train()
        expected[value] = trainer.evaluate()["eval_loss"]
    found = {}

    def space(trial):
        return {name: trial.suggest_categorical(name, values)}

    trainer = make()

    def objective(metrics):
        found[getattr(trainer.args, name)] = metrics["eval_loss"]
        return metrics["eval_loss"]

    sampler = optuna.samplers.GridSampler({name: values}, seed=0)
    trainer.hyperparameter_search(space, objective, n_trials=2, direction="minimize", backend="optuna", sampler=sampler)
    assert found == expected
    assert len(set(found.values())) == 2


# ---- schedules


CHANGED = {
    "infobert": {
        **{"alpha": 0.7, "beta": 0.2, "cl": 0.1, "ch": 0.6, "adv_lr": 0.7, "adv_init_mag": 0.9, "adv_max_norm": 0.2},
        **{"adv_steps": 3, "norm_type": "linf", "adv_start_step": 5, "adv_clean_pass": True},
    },
    "smart": {
        **{"smart_weight": 3.0, "smart_epsilon": 0.01, "smart_step_size": 4.0, "smart_noise_std": 0.4},
        **{"smart_steps": 2, "smoothness_dropout": "same"},
    },
    "r3f": {"r3f_weight": 3.0, "r3f_scale": 0.4, "r3f_noise": "normal"},
    "rdrop": {"rdrop_weight": 3.0},
}
BASES = {
    "infobert": {**STRONG, "adv_steps": 2},
    "smart": SMART,
    "r3f": {"objective": "r3f", "r3f_scale": 0.1},
    "rdrop": {"objective": "rdrop"},
}


def test_every_scheduled_argument_is_tried():
    assert {name for changes in CHANGED.values() for name in changes} == SCHEDULED


@pytest.mark.parametrize("objective", CHANGED)
def test_a_schedule_is_followed(train, objective):
    """The model stands still, so that a step's terms tell its arguments: after all of them have changed at once, the
    terms are those of a run that had the new values from the start.
    """
    # SMART's ascents are forwards, which draw dropout masks: of another number of them, later masks are others.
    base = {**BASES[objective], "dropout": 0.0 if objective == "smart" else 0.2}
    changes = dict(CHANGED[objective])
    changes.pop("adv_start_step", None)  # would keep the others from being seen
    without, throughout = train(**base), train(**{**base, **changes})
    scheduled = train(**base, callbacks=[At(**changes)])
    assert scheduled[0] == without[0] != throughout[0]
    assert scheduled[1] == throughout[1] != without[1]


@pytest.mark.parametrize("objective", CHANGED)
def test_each_argument_is_read_at_each_step(make_model, make_examples, make_trainer, as_batch, pad, objective):
    """One by one, in what the arguments make of a step."""

    def described():
        made = trainer._objective(as_batch(pad(make_examples(2))))
        window = (trainer._anchored.cl, trainer._anchored.ch) if trainer._anchored else None
        return vars(made) | {"window": window}

    trainer = make_trainer(make_model(num_hidden_layers=1), make_examples(4), learning_rate=0.0, **BASES[objective])
    trainer._begin_run()
    before = described()
    for name, value in CHANGED[objective].items():
        old = getattr(trainer.args, name)
        setattr(trainer.args, name, value)
        assert described() != before, name
        setattr(trainer.args, name, old)
        assert described() == before, name


def test_any_other_change_is_refused(make_arguments):
    args = make_arguments(**STRONG)
    fixed = args.fixed()
    assert {"negatives", "version", "objective", "packing", "critic_hidden_dim", "ib_sampling"} <= fixed.keys()
    args.check_unchanged(fixed)
    for name in fixed:
        changed = copy.deepcopy(args)
        setattr(changed, name, "another")
        with pytest.raises(ValueError, match=rf"`{name}` was .* when the run began and is 'another' now"):
            changed.check_unchanged(fixed)


def test_a_schedule_of_another_argument_stops_the_run(train):
    with pytest.raises(ValueError, match="`negatives` was 'chunk' when the run began and is 'batch' now"):
        train(**STRONG, adv_steps=1, callbacks=[At(negatives="batch")])


# ---- one trainer, several runs


def test_a_second_training_is_the_first_again(make_model, make_examples, make_trainer):
    """From the same weights and random state: the same logs to the last bit, and counts of its own."""
    model = make_model(num_hidden_layers=1)
    settings = {**STRONG, "adv_steps": 2, "learning_rate": 0.01, "logging_steps": 2, "max_grad_norm": 1.0}
    trainer = make_trainer(model, make_examples(12), **settings, optim="adamw_torch")
    start, seen = copy.deepcopy(model.state_dict()), []
    for _ in range(2):
        model.load_state_dict(start)
        trainer.optimizer = trainer.lr_scheduler = None
        torch.manual_seed(3)
        trainer.train()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        seen.append((lines_of(trainer), weights, trainer._throughput._sentences))
    (logs, weights, sentences), (logs_again, weights_again, sentences_again) = seen
    assert logs == logs_again
    assert all(torch.equal(value, weights_again[name]) for name, value in weights.items())
    assert sentences == sentences_again == 8  # from the second step on


def test_a_smaller_batch_after_running_out_of_memory_begins_anew(make_model, make_examples, make_trainer):
    """The logs are those of a run that began with the smaller batch: nothing of the first attempt is in them."""

    def run(batch, **settings):
        model, calls = make_model(dropout=0.0, num_hidden_layers=1), []

        def full(module, args, kwargs):
            calls.append(len(kwargs["input_ids"]))
            if calls[-1] > 2 and len(calls) > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate")

        model.register_forward_pre_hook(full, with_kwargs=True)
        trainer = make_trainer(
            model,
            make_examples(8),
            per_device_train_batch_size=batch,
            learning_rate=0.0,
            logging_steps=3,
            max_steps=3,
            **STRONG,
            adv_steps=2,
            **settings,
        )
        torch.manual_seed(3)
        trainer.train()
        return lines_of(trainer), calls

    found, calls = run(4, auto_find_batch_size=True)
    assert calls[:6] == [
        4,
        4,
        4,
        4,
        4,
        3,
    ]
    assert set(calls[6:]) == {2}
    assert found == run(2)[0]


# ---- devices


@pytest.mark.parametrize("kind", ["mps", "xpu", "hpu"])
def test_other_devices_are_refused_before_any_work(monkeypatch, make_model, make_examples, make_trainer, kind):
    from infobert_fast import InfoBertArguments

    model, calls = make_model(num_hidden_layers=1), []
    monkeypatch.setattr(InfoBertArguments, "device", property(lambda self: torch.device(kind)))
    monkeypatch.setattr(model, "to", lambda *args, **kwargs: calls.append(args))
    model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    with pytest.raises(ValueError, match=rf"the device is '{kind}', .*use_cpu=True"):
        make_trainer(model, make_examples(4))
    assert not calls
    assert not hasattr(model, "mi_estimator")
