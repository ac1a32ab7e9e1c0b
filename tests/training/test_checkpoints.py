"""The critic in the model's checkpoint: saved, loaded, resumed, refused, and no obstacle to stock transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from infobert_fast.training.models.critic import attach_critic, load_critic

SETTINGS = {
    "version": 6,
    "adv_steps": 2,
    "alpha": 0.1,
    "critic_hidden_dim": 20,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "lr_scheduler_type": "linear",
    "train_sampling_strategy": "random",
    "save_strategy": "steps",
    "save_steps": 2,
}


def states_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def saved(make_model, make_examples, make_trainer, tmp_path):
    """A trained model and the folder it was saved in."""
    trainer = make_trainer(make_model(), make_examples(8), **SETTINGS)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    return trainer.model, tmp_path / "saved"


def test_the_critic_is_saved_with_the_model(saved):
    model, folder = saved
    weights = load_file(folder / "model.safetensors")
    critic = {name: value for name, value in weights.items() if name.startswith("mi_estimator.")}
    assert {name.removeprefix("mi_estimator.") for name in critic} == {
        "F_func.0.weight",
        "F_func.0.bias",
        "F_func.2.weight",
        "F_func.2.bias",
    }
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in critic.items())


def test_the_trainer_takes_the_critic_of_the_models_folder(saved, make_examples, make_trainer):
    model, folder = saved
    again = BertForSequenceClassification.from_pretrained(folder)
    make_trainer(again, make_examples(4), **SETTINGS)
    assert states_equal(again.state_dict(), model.state_dict())


def test_a_second_trainer_keeps_the_trained_critic(saved, make_examples, make_trainer):
    """Not the one in the folder that the model once came from."""
    _, folder = saved
    model = BertForSequenceClassification.from_pretrained(folder)
    make_trainer(model, make_examples(8), **SETTINGS).train()
    trained = {name: value.clone() for name, value in model.mi_estimator.state_dict().items()}
    make_trainer(model, make_examples(8), **SETTINGS)
    assert states_equal(model.mi_estimator.state_dict(), trained)


def test_a_model_without_a_name_ignores_the_working_directory(saved, make_model, monkeypatch):
    _, folder = saved
    monkeypatch.chdir(folder)
    fresh = make_model()
    attach_critic(fresh, 64)  # the folder's is 20 wide: looking there would fail
    assert fresh.mi_estimator.F_func[0].out_features == 64


def test_a_folder_without_a_critic_starts_a_fresh_one(make_model, make_examples, make_trainer, tmp_path):
    make_model().save_pretrained(tmp_path / "plain")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "plain")
    make_trainer(model, make_examples(4), **SETTINGS)
    assert load_critic(model.mi_estimator, tmp_path / "plain") is False
    assert model.mi_estimator.F_func[0].out_features == 20


def test_a_folders_critic_of_another_width_is_refused(saved, make_examples, make_trainer):
    _, folder = saved
    model = BertForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"the critic in .*saved has shapes .*\[20, 64\].*this run's has .*\[30, 64\]"):
        make_trainer(model, make_examples(4), **{**SETTINGS, "critic_hidden_dim": 30})
    assert not hasattr(model, "mi_estimator")
    make_trainer(model, make_examples(4), **SETTINGS)


def test_a_models_critic_of_another_width_is_refused(saved, make_examples, make_trainer):
    model, _ = saved
    with pytest.raises(ValueError, match="`critic_hidden_dim` was 30; the model's critic is 20 wide: set it to 20"):
        make_trainer(model, make_examples(4), **{**SETTINGS, "critic_hidden_dim": 30})


def test_a_sharded_folder_gives_its_critic(saved, make_model, tmp_path):
    model, _ = saved
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    critic = attach_critic(make_model(seed=1), 20)
    assert load_critic(critic, tmp_path / "shards") is True
    assert states_equal(critic.state_dict(), model.mi_estimator.state_dict())


def test_stock_transformers_opens_the_folder(saved, make_examples, pad):
    """In a process that cannot import infobert_fast, with the same logits."""
    model, folder = saved
    batch = pad(make_examples(2))
    inputs = {name: batch[name].tolist() for name in ("input_ids", "attention_mask")}
    code = f"""
import json, sys
sys.modules["infobert_fast"] = None
import torch
from transformers import AutoModelForSequenceClassification
model, info = AutoModelForSequenceClassification.from_pretrained({str(folder)!r}, output_loading_info=True)
out = model(**{{name: torch.tensor(value) for name, value in {inputs}.items()}})
print(json.dumps([type(model).__name__, sorted(info["missing_keys"]), out.logits.tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, missing, logits = json.loads(done.stdout.splitlines()[-1])
    assert (name, missing) == ("BertForSequenceClassification", [])
    torch.testing.assert_close(torch.tensor(logits), model.eval()(**batch).logits)


# ---- resuming


@pytest.mark.parametrize("version", [1, 6])
def test_a_resumed_run_is_the_uninterrupted_one(make_model, make_examples, make_trainer, tmp_path, version):
    """Parameters, critic, learned bound, perturbations and dropout, to the last bit."""
    settings = {**SETTINGS, "version": version, "num_train_epochs": 2, "output_dir": str(tmp_path / "run")}
    whole = make_trainer(make_model(), make_examples(12), **settings)
    whole.train()
    resumed = make_trainer(make_model(seed=5), make_examples(12), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())
    if version == 1:
        assert states_equal(resumed._bottleneck.state_dict(), whole._bottleneck.state_dict())
        for mine, other in zip(resumed._club.parameters(), whole._club.parameters(), strict=True):
            first, second = (t._club.optimizer.state[p] for t, p in ((resumed, mine), (whole, other)))
            assert states_equal(first, second)
    log = {line["step"]: line["loss"] for line in whole.state.log_history if "loss" in line}
    again = {line["step"]: line["loss"] for line in resumed.state.log_history if "loss" in line}
    assert again == log


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"train_sampling_strategy": "group_by_length"}, id="grouped by length, within the second epoch"),
        pytest.param({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}, id="accumulation"),
        pytest.param({"logging_steps": 3}, id="a log line over both sides of the checkpoint"),
        pytest.param({"nonfinite": "skip", "adv_clean_pass": True}, id="clean pass"),
        pytest.param({"batch_tokens": 30}, id="batches by tokens"),
        pytest.param({"objective": "rdrop", "version": None}, id="R-Drop"),
    ],
)
def test_whatever_the_settings(make_model, make_examples, make_trainer, tmp_path, changes):
    settings = {**SETTINGS, "adv_steps": None, "num_train_epochs": 3, "output_dir": str(tmp_path / "run"), **changes}
    whole = make_trainer(make_model(), make_examples(12), **settings)
    whole.train()
    middle = next(step for step in (4, 6, 8) if step % (whole.state.max_steps // 3))  # within an epoch
    resumed = make_trainer(make_model(seed=5), make_examples(12), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{middle}"))
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert lines(resumed) == lines(whole)


def test_evaluations_do_not_change_the_training(make_model, make_examples, make_trainer, tmp_path):
    """Also where one fell between a checkpoint at an epoch's last step and the next epoch."""
    found = []
    for evaluations in ("no", "epoch"):
        settings = {**SETTINGS, "num_train_epochs": 2, "eval_strategy": evaluations}
        settings["output_dir"] = str(tmp_path / evaluations)
        run = make_trainer(make_model(), make_examples(16), eval_dataset=make_examples(4), **settings)
        run.train()
        found.append(run.model.state_dict())
    assert states_equal(*found)
    resumed = make_trainer(make_model(seed=5), make_examples(16), eval_dataset=make_examples(4), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "epoch" / "checkpoint-4"))
    assert states_equal(resumed.model.state_dict(), found[0])


def lines(trainer):
    """The training's log lines, all numbers."""
    return [line for line in trainer.state.log_history if "loss" in line]


def test_resuming_with_a_critic_of_another_width_is_refused(saved, make_model, make_examples, make_trainer, tmp_path):
    trainer = make_trainer(make_model(), make_examples(8), **{**SETTINGS, "critic_hidden_dim": 30})
    with pytest.raises(ValueError, match=r"is of a run with other settings.*critic_hidden_dim: 20 -> 30"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_the_best_model_brings_its_critic(make_model, make_examples, make_trainer, tmp_path):
    trainer = make_trainer(
        make_model(),
        make_examples(16),
        eval_dataset=make_examples(4, seed=2),
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        **{**SETTINGS, "learning_rate": 0.3},  # so large that the first evaluation is the best
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert states_equal(trainer.model.state_dict(), load_file(best / "model.safetensors"))


# ---- the published critic


@pytest.mark.parametrize("prefix", ["", "module.", "module.mi_estimator."])
def test_a_published_critic_is_imported(make_model, make_examples, make_trainer, make_critic, tmp_path, prefix):
    """From a state dict whose keys bear DataParallel's prefix or none, named or found in the model's folder."""
    critic = make_critic(make_model(), 20)
    state = {prefix + name: value for name, value in critic.state_dict().items()}
    make_model().save_pretrained(tmp_path / "published")
    torch.save(state, tmp_path / "published" / "mi_estimator.bin")
    folder = BertForSequenceClassification.from_pretrained(tmp_path / "published")
    named = make_model()
    make_trainer(folder, make_examples(4), **SETTINGS)
    make_trainer(
        named, make_examples(4), critic_checkpoint=str(tmp_path / "published" / "mi_estimator.bin"), **SETTINGS
    )
    for model in (folder, named):
        assert states_equal(model.mi_estimator.state_dict(), critic.state_dict())


class Foreign:
    def __reduce__(self):
        return (print, ("code of a stranger",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"F_func.0.weight": torch.zeros(7, 64)}, r"has shapes \{'F_func.0.weight': \[7, 64\]\}; this run's has"),
        ({"other.weight": torch.zeros(1)}, "`critic_checkpoint` was .*, which holds no critic"),
        ([torch.zeros(1)], "holds a list; it must be a state dict"),
        ({"F_func.0.weight": Foreign()}, "holds more than tensors and is not loaded"),
    ],
)
def test_what_is_no_critic_is_refused(make_model, make_examples, make_trainer, tmp_path, capsys, content, message):
    torch.save(content, tmp_path / "critic.bin")
    with pytest.raises(ValueError, match=message):
        make_trainer(make_model(), make_examples(4), critic_checkpoint=str(tmp_path / "critic.bin"), **SETTINGS)
    assert "stranger" not in capsys.readouterr().out


def test_a_critic_that_is_not_there_is_refused(make_model, make_examples, make_trainer, tmp_path):
    with pytest.raises(ValueError, match=r"`critic_checkpoint` was .*nowhere', which holds no critic"):
        make_trainer(make_model(), make_examples(4), critic_checkpoint=str(tmp_path / "nowhere"), **SETTINGS)
