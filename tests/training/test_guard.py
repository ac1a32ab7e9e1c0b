"""No step from a loss or gradient that is not finite: stopped with its cause, or skipped as if it had not been."""

import copy
import math

import pytest
import torch
import transformers
from transformers import TrainerCallback

from infobert_fast import InfoBertTrainer
from infobert_fast.training.engines.accelerated import AcceleratedRunner
from infobert_fast.training.models.forward import PerturbedModel
from infobert_fast.training.reliability.guard import mark_nonfinite

SETTINGS = {
    "alpha": 0.3,
    "beta": 0.05,
    "adv_steps": 2,
    "critic_hidden_dim": 20,
    "learning_rate": 0.01,
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
}


def spoil(monkeypatch, when, value=math.nan):
    """Make the task loss of some micro-batches ``value`` times what it is; ``when(step, micro_step)``."""
    original = InfoBertTrainer.compute_loss

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = original(self, model, inputs, return_outputs=True, **kwargs)
        if model.training and when(*self._place):
            loss = loss * value
        return (loss, outputs) if return_outputs else loss

    monkeypatch.setattr(InfoBertTrainer, "compute_loss", compute_loss)


def states_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class States(TrainerCallback):
    """Parameters and the optimiser's state after each step."""

    def __init__(self):
        self.parameters, self.moments = [], []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.parameters.append({name: value.detach().clone() for name, value in model.named_parameters()})
        self.moments.append([copy.deepcopy(optimizer.state[p]) for p in model.parameters()])


@pytest.mark.parametrize("strategy", ["sequential", "random", "group_by_length"])
def test_stop_names_step_term_and_examples(monkeypatch, make_model, make_examples, make_trainer, pad, strategy):
    """The examples named are those that the collator saw, in the second epoch of a shuffled order too."""
    spoil(monkeypatch, lambda step, micro: (step, micro) == (3, 1))
    examples, seen, model = make_examples(12), [], make_model()

    def collate(batch):
        seen.append([examples.index(example) for example in batch])
        return pad(batch)

    trainer = make_trainer(
        model,
        examples,
        data_collator=collate,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,  # two steps an epoch
        num_train_epochs=2,
        train_sampling_strategy=strategy,
        callbacks=[states := States()],
        save_strategy="steps",
        save_steps=1,
        **SETTINGS,
    )
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    micro_batch = seen[3 * 3 + 1]
    assert (
        f"step 3: task_loss not finite (rank 0, micro-batch 1: task_loss nan, training examples {micro_batch[0]}, "
        in (str(caught.value))
    )
    assert f"{micro_batch[1]})" in str(caught.value)
    assert "set nonfinite='skip'" in str(caught.value)
    assert states_equal(dict(model.named_parameters()), states.parameters[2])  # untouched by the step


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_skip_leaves_everything_as_it_was(monkeypatch, make_model, make_examples, make_trainer, value, clipping):
    """Neither weight decay nor moments move, and training goes on."""
    spoil(monkeypatch, lambda step, micro: step == 1, value)
    model = make_model()
    trainer = make_trainer(
        model,
        make_examples(16),
        nonfinite="skip",
        callbacks=[states := States()],
        **SETTINGS | {"max_grad_norm": clipping},
    )
    trainer.train()
    assert len(states.parameters) == 4
    assert states_equal(states.parameters[1], states.parameters[0])
    assert all(states_equal(*pair) for pair in zip(states.moments[1], states.moments[0], strict=True))
    assert not states_equal(states.parameters[2], states.parameters[1])
    assert all(value.isfinite().all() for value in states.parameters[3].values())
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line.get("skipped_steps") for line in lines] == [None, 1, 1, 1]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line.get("task_loss", 0)) for line in lines)


def test_a_skipped_step_is_left_out_of_logged_means(monkeypatch, make_model, make_examples, make_trainer):
    spoil(monkeypatch, lambda step, micro: step == 2)
    trainer = make_trainer(
        make_model(), make_examples(16), nonfinite="skip", **SETTINGS | {"learning_rate": 0.0, "version": -1}
    )
    trainer.train()
    single = [line["task_loss"] for line in trainer.state.log_history if "task_loss" in line]
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged[:2] + logged[3:] == pytest.approx(single, rel=1e-6)  # a line a step: the skipped one's is no mean
    trainer = make_trainer(
        make_model(),
        make_examples(16),
        nonfinite="skip",
        **SETTINGS | {"learning_rate": 0.0, "version": -1, "logging_steps": 4},
    )
    mean = trainer.train().training_loss
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert len(single) == 3
    assert mean == pytest.approx(sum(single) / 3, rel=1e-6)
    assert line["task_loss"] == pytest.approx(sum(single) / 3)
    assert line["loss"] == pytest.approx(sum(single) / 3, rel=1e-6)
    assert line["skipped_steps"] == 1


def test_a_gradient_alone(make_model, make_examples, make_trainer):
    """Every term is finite; all micro-batches of the step are named."""
    model = make_model()
    trainer = make_trainer(model, make_examples(8), gradient_accumulation_steps=2, **SETTINGS)
    model.classifier.bias.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(FloatingPointError, match=r"step 0: gradient not finite \(rank 0, micro-batch 0: terms finite"):
        trainer.train()


def test_a_finite_run_is_not_changed(make_model, make_examples, make_trainer):
    """Bit for bit, whichever action is chosen."""
    found = []
    for action in ("stop", "skip"):
        trainer = make_trainer(make_model(), make_examples(12), nonfinite=action, **SETTINGS)
        trainer.train()
        found.append((trainer.model.state_dict(), [x["loss"] for x in trainer.state.log_history if "loss" in x]))
    assert states_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_marking_changes_no_bit():
    for value in (0.1, -1e38, 1e-40, -0.0):
        leaf = torch.tensor(value, requires_grad=True)
        marked = mark_nonfinite(leaf * 3)
        assert torch.equal(marked, leaf * 3)
        assert torch.equal(torch.autograd.grad(marked, leaf)[0], torch.tensor(3.0))
    for value in (math.inf, -math.inf, math.nan):
        leaf = torch.tensor(value, requires_grad=True)
        assert torch.autograd.grad(mark_nonfinite(leaf * 3), leaf)[0].isnan()


def test_float16_overflows_are_left_to_the_scaler(monkeypatch, make_model, make_examples, make_trainer):
    """Until its scale is below 1, when no scale can be the cause."""
    scale = [65536.0]
    trainer = make_trainer(make_model(), make_examples(4), **SETTINGS)

    class Scaler:
        def get_scale(self):
            return scale[0]

    monkeypatch.setattr(trainer.accelerator, "scaler", Scaler())
    trainer._runner = AcceleratedRunner(PerturbedModel(trainer.model), trainer.model, trainer.accelerator)
    monkeypatch.setattr(transformers.Trainer, "_get_grad_norm", lambda self, model, norm: norm)
    assert trainer._get_grad_norm(None, math.inf) == math.inf
    scale[0] = 0.5
    trainer.callback_handler.train_dataloader = trainer.get_train_dataloader()
    with pytest.raises(FloatingPointError):
        trainer._get_grad_norm(None, math.inf)
