"""Adapters of weights by `peft`: the critic is trained, saved beside them, resumed, and lost nowhere."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, TrainerCallback

from infobert_fast.training.models.critic import attach_critic, critic_of, keep_critic, load_critic
from infobert_fast.training.reliability.resume import differences, run_record
from infobert_fast.training.steps.infobert import infobert_step

peft = pytest.importorskip("peft")
ENGINES = ["ddp", "zero2", "zero3"]

SETTINGS = {
    "version": 6,
    "adv_steps": 2,
    "alpha": 0.1,
    "critic_hidden_dim": 20,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "train_sampling_strategy": "random",
    "save_strategy": "steps",
    "save_steps": 2,
}
LORA = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "lora_dropout": 0.1, "r": 4}


@pytest.fixture
def make_adapted(make_model):
    """A tiny classifier that `peft` has wrapped, with adapters that are not zero."""

    def make(seed=0, dtype=torch.float32, base_seed=0, dropout=0.2, **changes):
        model = make_model(seed=base_seed, dtype=dtype, dropout=dropout)
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft.LoraConfig(**{**LORA, "init_lora_weights": False, **changes}))

    return make


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names_in(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found[path.name] = set(file.keys())
    return found


@pytest.mark.parametrize("version", [-1, 1, 4, 5, 6])
def test_the_gradient_is_that_of_a_model_whose_other_weights_are_frozen(
    make_adapted, make_model, make_examples, make_critic, make_runner, as_batch, pad, version
):
    """Adapters merged into a full model: delta, anchors and both bounds are the same, and so are states and loss."""
    from infobert_fast.adversary import FreeLB
    from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, InformationBottleneck
    from infobert_fast.training.steps.infobert import Objective

    adapted = make_adapted(dtype=torch.float64, lora_dropout=0.0)
    whole = copy.deepcopy(adapted).merge_and_unload().requires_grad_()
    assert type(whole) is BertForSequenceClassification
    batch, gradients, measured = pad(make_examples(4)), {}, {}
    for name, model in (("adapted", adapted), ("whole", whole)):
        critic = make_critic(model) if version in AFR_VERSIONS else None
        kind = VERSIONS[version]
        torch.manual_seed(5)
        objective = Objective(
            FreeLB(0.3, 0.5, 0.0, 3),
            None if kind is None else InformationBottleneck(kind, hidden_size=32, max_length=24).double(),
            AnchoredFeature(0.3, 0.9) if version in AFR_VERSIONS else None,
            critic,
            0.05,
            0.3,
        )
        torch.manual_seed(99)
        measured[name] = infobert_step(objective, as_batch(batch), make_runner(model), 7).mean
        gradients[name] = {n: p.grad for n, p in model.named_parameters()}
    for term, value in measured["whole"].items():
        torch.testing.assert_close(measured["adapted"][term], value, atol=1e-6, rtol=0)
    assert all((g is None) == (not p.requires_grad) for (_, p), g in zip(
        adapted.named_parameters(), gradients["adapted"].values(), strict=True))  # fmt: skip
    scaling = adapted.base_model.model.bert.encoder.layer[0].attention.self.query.scaling["default"]
    checked = 0
    for name, gradient in gradients["adapted"].items():
        plain = name.removeprefix("base_model.model.")
        if "lora_" in name:  # W = W0 + s B A: dL/dB = s dL/dW A', dL/dA = s B' dL/dW
            stem = plain.rpartition(".lora_")[0]
            weight = gradients["whole"][f"{stem}.weight"]
            a, b = (adapted.get_parameter(f"base_model.model.{stem}.lora_{x}.default.weight").detach() for x in "AB")
            torch.testing.assert_close(
                gradient, scaling * (weight @ a.T if ".lora_B." in name else b.T @ weight), atol=1e-10, rtol=0
            )
        elif gradient is not None:
            plain = plain.replace("modules_to_save.default.", "")
            torch.testing.assert_close(gradient, gradients["whole"][plain], atol=1e-10, rtol=0)
        else:
            continue
        assert gradient.any()
        checked += 1
    assert checked == 8 + 2 + (4 if version in AFR_VERSIONS else 0)


def test_the_critic_is_trained_and_saved_beside_the_adapter(make_adapted, make_examples, make_trainer, tmp_path):
    model = make_adapted()
    trainer = make_trainer(model, make_examples(8), **SETTINGS)
    before = state_of(critic_of(model))
    trainer.train()
    after = critic_of(model).state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    for folder in (tmp_path / "out" / "checkpoint-2", tmp_path / "saved"):
        trainer.save_model(str(tmp_path / "saved"))
        names = names_in(folder)
        assert names.keys() == {"adapter_model.safetensors", "mi_estimator.safetensors"}
        assert names["mi_estimator.safetensors"] == {f"mi_estimator.{name}" for name in after}
        critic = attach_critic(make_adapted(seed=3), 20)
        assert load_critic(critic, folder)
        assert same(critic.state_dict(), after)


@pytest.mark.parametrize("freeze", ["attached before", "frozen by hand"])
def test_a_critic_that_was_frozen_is_trained(make_model, make_examples, make_trainer, freeze):
    model = make_model()
    if freeze == "attached before":
        attach_critic(model, 20)
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    attach_critic(model, 20)
    if freeze == "frozen by hand":
        critic_of(model).requires_grad_(False)
    before = state_of(critic_of(model))
    make_trainer(model, make_examples(8), **SETTINGS).train()
    assert not any(torch.equal(before[name], value) for name, value in critic_of(model).state_dict().items())


class Ends(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("version", [1, 6])
def test_a_run_is_resumed_exactly(make_adapted, make_examples, make_trainer, version):
    """With dropout on; the wrapped model of the new run has other adapters, another head and another critic."""
    settings = {**SETTINGS, "version": version, "num_train_epochs": 2}
    trainer = make_trainer(make_adapted(), make_examples(8), **settings)
    trainer.train()
    whole = state_of(trainer.model)
    make_trainer(make_adapted(), make_examples(8), **settings, callbacks=[Ends(2)]).train()
    other = make_adapted(seed=5)
    again = make_trainer(other, make_examples(8), **settings)
    assert not same(state_of(other), whole)
    again.train(resume_from_checkpoint=str(again.args.output_dir) + "/checkpoint-2")
    assert again.state.global_step == 4
    ends = state_of(other)
    assert same(*({n: v for n, v in state.items() if "original_module" not in n} for state in (ends, whole)))


def test_a_checkpoint_without_its_critic_is_refused(make_adapted, make_examples, make_trainer, tmp_path):
    """Whole by its manifest, as if it had been written by an earlier release."""
    trainer = make_trainer(make_adapted(), make_examples(8), **SETTINGS)
    trainer.train()
    folder = tmp_path / "out" / "checkpoint-2"
    (folder / "mi_estimator.safetensors").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["mi_estimator.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"checkpoint-2 holds no critic .*so that the run would not go on as it was"):
        make_trainer(make_adapted(), make_examples(8), **SETTINGS).train(resume_from_checkpoint=str(folder))


def test_the_best_model_is_loaded_with_its_critic(make_adapted, make_examples, make_trainer, tmp_path):
    settings = {**SETTINGS, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "num_train_epochs": 2,
                "load_best_model_at_end": True, "metric_for_best_model": "eval_rank",
                "greater_is_better": True}  # fmt: skip
    ranks = iter([1, 3, 2, 0])
    trainer = make_trainer(
        make_adapted(), make_examples(8), eval_dataset=make_examples(4),
        compute_metrics=lambda _: {"rank": next(ranks)}, **settings,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = attach_critic(make_adapted(seed=3), 20)
    load_critic(best, tmp_path / "out" / "checkpoint-2")
    assert same(best.state_dict(), critic_of(trainer.model).state_dict())


def test_the_merged_model_opens_in_stock_transformers(make_adapted, make_examples, make_trainer, pad, tmp_path):
    model = make_adapted()
    make_trainer(model, make_examples(8), **SETTINGS).train()
    batch = pad(make_examples(4))
    expected = model.eval()(**batch).logits
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    opened = BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(opened(**batch).logits, expected)
    critic = attach_critic(opened, 20)  # the folder's
    assert same(critic.state_dict(), critic_of(model).state_dict())


def test_a_run_on_other_adapters_or_another_base_is_refused(make_adapted, make_examples, make_trainer):
    def record(model):
        trainer = make_trainer(model, make_examples(4), **SETTINGS)
        return trainer._record()["run"]

    one = record(make_adapted())
    assert differences(one, record(make_adapted(seed=9))) == []  # loaded from the checkpoint
    assert differences(one, record(make_adapted(r=2))) == ["model.adapters.default.r: 4 -> 2"]
    (line,) = differences(one, record(make_adapted(base_seed=4)))
    assert line.startswith("model.frozen_weights: ")


def test_a_plain_model_has_no_adapters(make_model, make_arguments, make_examples):
    record = run_record(make_arguments(), make_model(), "Bert", make_examples(4), "none")
    assert record["run"]["model"]["adapters"] == {}


@pytest.mark.parametrize("changes", [{"modules_to_save": ["mi_estimator"]}, {"target_modules": "all-linear"}])
def test_adapters_in_the_critic_are_refused(make_model, make_examples, make_trainer, changes):
    model = make_model()
    attach_critic(model, 20)
    model = peft.get_peft_model(model, peft.LoraConfig(**{**LORA, **changes}))
    with pytest.raises(ValueError, match="`peft` has put adapters or a copy into the model's `mi_estimator`"):
        make_trainer(model, make_examples(4), **SETTINGS)


def test_tokens_of_its_own_are_refused(make_model, make_examples, make_trainer):
    model = peft.get_peft_model(make_model(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PromptTuningConfig, which puts tokens of its own before the text"):
        make_trainer(model, make_examples(4), **SETTINGS)


def test_an_adapter_that_is_not_trained_is_refused(make_adapted, make_model, make_examples, make_trainer, tmp_path):
    make_adapted().save_pretrained(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"`model` has no parameter to train but the critic's.*is_trainable=True"):
        make_trainer(model, make_examples(4), **SETTINGS).train()


def test_weights_that_were_gathered_without_the_critic_are_refused(make_adapted, tmp_path):
    critic = attach_critic(make_adapted(), 20)
    with pytest.raises(ValueError, match="lack the critic's"):
        keep_critic(critic, tmp_path, {"base_model.model.classifier.weight": torch.zeros(1)})
    keep_critic(critic, tmp_path, {})  # an engine's own form holds all weights
    assert list(tmp_path.iterdir()) == []
    gathered = {f"base_model.model.mi_estimator.{name}": value + 1 for name, value in critic.state_dict().items()}
    keep_critic(critic, tmp_path, gathered)
    assert load_critic(critic, tmp_path)
    assert all(
        torch.equal(value, gathered[f"base_model.model.mi_estimator.{n}"]) for n, value in critic.state_dict().items()
    )


# ---- on two ranks


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """What one process and two ranks under each engine wrote: ``on_ranks(engine, scenario)``, an entry a rank."""
    out = tmp_path_factory.mktemp("adapted")
    script = str(Path(__file__).with_name("adapted_ranks.py"))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for command in ([script, str(out), "2", "one"], [*torchrun, script, str(out), "2", *ENGINES]):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]

    def read(engine, scenario):
        return [torch.load(path, weights_only=True) for path in sorted(out.glob(f"{engine}-{scenario}-?.pt"))]

    read.folder = out
    return read


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradients_of_ranks_are_those_of_one_process(on_ranks, engine):
    (one,), every = on_ranks("one", "lora"), on_ranks(engine, "lora")
    assert len(every) == 2
    for rank in every:
        assert rank["movement"].keys() == one["movement"].keys()
        for name, expected in one["movement"].items():
            torch.testing.assert_close(rank["movement"][name], expected, atol=1e-6, rtol=0)
            trained = "lora_" in name or "mi_estimator" in name or "modules_to_save" in name
            assert bool(expected.any()) is trained


@pytest.mark.parametrize("engine", ENGINES)
def test_ranks_resume_and_save_their_critic(on_ranks, engine):
    """With dropout on, from a checkpoint in a new trainer; the folder holds adapter and critic."""
    whole, resumed = on_ranks(engine, "whole"), on_ranks(engine, "resumed")
    assert len(whole) == len(resumed) == 2
    ends = whole[0]["after"]
    for other in (whole[1], *resumed):
        assert same(other["after"], ends)
    folder = on_ranks.folder / f"{engine}-model"
    assert names_in(folder).keys() >= {"adapter_model.safetensors", "mi_estimator.safetensors"}
    prefix = "base_model.model.mi_estimator."
    critic = {name.removeprefix(prefix): value for name, value in ends.items() if name.startswith(prefix)}
    assert len(critic) == 4
    assert same(load_file(folder / "mi_estimator.safetensors"), {f"mi_estimator.{n}": v for n, v in critic.items()})
