"""What may go wrong around a training, and what then happens; the table in docs/reliability.md lists these."""

import copy
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from infobert_fast import InfoBertArguments
from infobert_fast.training.reliability import checkpoints, resume

SETTINGS = {
    "adv_steps": 2,
    "alpha": 0.1,
    "critic_hidden_dim": 20,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "train_sampling_strategy": "random",
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture
def run(make_model, make_examples, make_trainer, tmp_path):
    """Train six steps in ``tmp_path / "run"`` with changed settings; the trainer."""

    def train(resume=None, model=None, examples=None, **changes):
        settings = {**SETTINGS, "output_dir": str(tmp_path / "run"), **changes}
        trainer = make_trainer(
            make_model() if model is None else model, make_examples(24) if examples is None else examples, **settings
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def states_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- killed


@pytest.mark.parametrize(
    ("engine", "kills", "steps"), [("one", 3, 30), ("ddp", 2, 20), ("fsdp2", 2, 16), ("zero2", 2, 16)]
)
def test_a_run_that_is_killed_ends_as_the_undisturbed_one(tmp_path, engine, kills, steps):
    """By SIGKILL, within the writing of a checkpoint and between; on two ranks the survivor does not wait for ever."""
    script = Path(__file__).with_name("kill.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out", "--engine", engine, f"--kills={kills}", f"--steps={steps}"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == kills
    assert report["weights_equal"]
    assert report["curves_equal"]
    assert report["steps"] == steps
    assert report["while_writing"] + max(report["resumed_from"]) > 0  # at least one start was no fresh one


def test_what_a_kill_leaves_is_finished_or_removed(run, tmp_path):
    out = tmp_path / "run"
    run()
    # Killed within the write of one, and between sealing and naming another.
    (out / "tmp-checkpoint-8" / "checkpoint-8").mkdir(parents=True)
    shutil.copy(out / "checkpoint-6" / "model.safetensors", out / "tmp-checkpoint-8" / "checkpoint-8")
    (out / "tmp-checkpoint-6").mkdir()
    (out / "checkpoint-6").rename(out / "tmp-checkpoint-6" / "checkpoint-6")
    checkpoints.sweep(out)
    assert names(out) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert checkpoints.newest(out) == out / "checkpoint-6"


# ---- the disk


class LittleRoom(TrainerCallback):
    """From a step on, no file may grow beyond a few thousand bytes."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_costs_the_checkpoint_being_written_and_no_other(
    run, tmp_path, make_trainer, make_model, make_examples
):
    whole = run(output_dir=str(tmp_path / "whole"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = make_trainer(
        make_model(), make_examples(24), callbacks=[LittleRoom()], **SETTINGS, output_dir=str(tmp_path / "run")
    )
    try:
        with pytest.raises(OSError, match=r"the checkpoint of step 4 could not be written to .*start again with"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert names(tmp_path / "run") == ["checkpoint-2"]
    resumed = run("auto")
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_a_full_disk_leaves_the_saved_model_as_it_was(run, tmp_path):
    trainer = run(save_strategy="no")
    trainer.save_model(str(tmp_path / "saved"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    with torch.no_grad():
        next(trainer.model.parameters()).zero_()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))
    try:
        with pytest.raises(Exception, match=r"(?i)file too large|os error 27"):
            trainer.save_model(str(tmp_path / "saved"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


def test_a_saved_model_replaces_a_sharded_one(run, tmp_path):
    """No stale shard stays to be read with it."""
    trainer = run(save_strategy="no")
    trainer.model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    trainer.save_model(str(tmp_path / "saved"))
    assert [path.name for path in (tmp_path / "saved").glob("*.safetensors*")] == ["model.safetensors"]
    assert states_equal(load_file(tmp_path / "saved" / "model.safetensors"), trainer.model.state_dict())


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(
    make_trainer, make_model, make_examples, tmp_path
):
    trainer = make_trainer(make_model(), make_examples(8), **SETTINGS)
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("in the way")  # of its superuser no permission would keep a test from writing
    with pytest.raises(OSError, match=r"`output_dir` was .*/out, where nothing can be written .*: choose another"):
        trainer.train()
    assert trainer.state.global_step == 0


# ---- damaged and foreign checkpoints


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(run, tmp_path, damage):
    whole = run()
    file = tmp_path / "run" / "checkpoint-6" / ("manifest.json" if damage == "no manifest" else "optimizer.pt")
    content = file.read_bytes()
    if damage == "shorter":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "other bytes":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.unlink()
    message = {
        "shorter": "optimizer.pt has .* bytes instead of",
        "other bytes": "the content of optimizer.pt is not what was written",
        "missing": "optimizer.pt is missing",
        "no manifest": "its manifest.json cannot be read",
    }
    with pytest.raises(ValueError, match=rf"checkpoint-6, which is not whole: {message[damage]}.*use 'auto'"):
        run(str(tmp_path / "run" / "checkpoint-6"))
    assert checkpoints.newest(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    resumed = run("auto")
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert checkpoints.fault(tmp_path / "run" / "checkpoint-6") is None  # written anew over the damaged one


def test_a_finished_run_takes_no_further_step(run):
    """Ended within an epoch; stock transformers would go on to step 6."""
    finished = run(max_steps=5, save_steps=1)
    again = run("auto", max_steps=5, save_steps=1)
    assert again.state.global_step == 5
    assert states_equal(again.model.state_dict(), finished.model.state_dict())


def test_auto_starts_afresh_where_there_is_nothing(run, tmp_path):
    assert run("auto").state.global_step == 6
    shutil.rmtree(tmp_path / "run")
    for request in (True, "true"):
        with pytest.raises(ValueError, match=r"holds no whole checkpoint: use 'auto'"):
            run(request)


def test_a_checkpoint_of_the_model_alone_is_not_resumed(run, tmp_path):
    run(save_only_model=True)
    with pytest.raises(ValueError, match=r"holds the model alone \(save_only_model\)"):
        run(str(tmp_path / "run" / "checkpoint-4"))
    assert checkpoints.newest(tmp_path / "run") is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 7}, r"arguments.seed: 42 -> 7"),
        ({"per_device_train_batch_size": 2}, r"arguments.per_device_train_batch_size: 4 -> 2"),
        ({"gradient_accumulation_steps": 2}, r"arguments.gradient_accumulation_steps: 1 -> 2"),
        ({"alpha": 0.2}, r"arguments.alpha: 0.1 -> 0.2"),
        ({"num_train_epochs": 2}, r"arguments.num_train_epochs: 1 -> 2"),
        ({"train_sampling_strategy": "sequential"}, r"train_sampling_strategy: 'random' -> 'sequential'"),
    ],
)
def test_other_settings_are_refused_by_name(run, changes, named):
    run()
    with pytest.raises(ValueError, match=rf"run with other settings.*{named}.*`resume_with_changes`"):
        run("auto", **changes)
    assert run("auto", **changes, resume_with_changes=True).state.global_step >= 6


def test_another_model_and_other_data_are_refused_by_name(run, make_model, make_examples):
    run()
    with pytest.raises(ValueError, match=r"model.config.hidden_size: 32 -> 16"):
        run("auto", model=make_model(hidden_size=16))
    with pytest.raises(ValueError, match=r"model.class: 'BertForSequenceClassification' -> 'Roberta"):
        run("auto", model=make_model("roberta"))
    with pytest.raises(ValueError, match=r"train_dataset.length: 24 -> 20"):
        run("auto", examples=make_examples(20))
    with pytest.raises(ValueError, match=r"train_dataset.sha256: "):
        run("auto", examples=make_examples(24, seed=1))


def test_the_tokenizers_special_tokens_are_no_change(run, squad_tokenizer):
    """The Trainer writes them into the model's configuration as it begins, after the checkpoint has been chosen."""
    run(processing_class=squad_tokenizer)
    resumed = run("auto", processing_class=squad_tokenizer)
    assert resumed.state.global_step == 6
    assert resumed.model.config.pad_token_id == squad_tokenizer.pad_token_id != 1


def test_another_number_of_ranks_is_refused_by_name(run, tmp_path):
    run()
    for folder in (tmp_path / "run").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["run"]["world_size"] = 2
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="world_size: 2 -> 1"):
        run("auto")


def test_another_environment_is_only_warned_of(run, tmp_path, caplog):
    run()
    for folder in (tmp_path / "run").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["environment"]["torch"] = "1.0"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    run("auto")
    assert "written with another environment" in caplog.text
    assert "torch: '1.0' -> " in caplog.text


# ---- rotation


def test_rotation_keeps_the_best_and_the_newest(run, tmp_path, make_examples):
    trainer = run(save_total_limit=2)
    assert names(tmp_path / "run") == ["checkpoint-4", "checkpoint-6"]
    del trainer
    shutil.rmtree(tmp_path / "run")
    run(save_total_limit=1)
    assert names(tmp_path / "run") == ["checkpoint-6"]


def test_a_new_run_in_a_used_folder_resumes_its_own_checkpoints(run, tmp_path):
    """By the time of writing rather than by number, of which the older run may have reached a higher one."""
    run(num_train_epochs=2)
    run(max_steps=4, save_total_limit=2)
    assert checkpoints.newest(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    assert names(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]


# ---- what a checkpoint remembers of its run


def test_every_argument_is_recorded_or_free(make_model, make_arguments):
    """A free one has its reason; a change of any other is told by name."""
    free = [name for names in resume.FREE.values() for name in names]
    known = {field.name for field in dataclasses.fields(InfoBertArguments)}
    assert len(free) == len(set(free))
    args, model = make_arguments(), make_model()
    recorded = resume.run_record(args, model, "Bert", None, "none")["run"]["arguments"]
    assert recorded.keys() == known - set(free)
    changes = {"weight_decay": 0.3, "adam_beta1": 0.1, "adam_beta2": 0.5, "adam_epsilon": 1e-3, "max_grad_norm": 7.0,
        "label_smoothing_factor": 0.2, "neftune_noise_alpha": 5.0, "learning_rate": 0.4, "cl": 0.1,
        "global_feature": "mean", "tf32": False, "auto_find_batch_size": True}  # fmt: skip
    for name, value in changes.items():
        changed = copy.deepcopy(args)
        setattr(changed, name, value)
        other = resume.run_record(changed, model, "Bert", None, "none")["run"]["arguments"]
        (line,) = resume.differences(recorded, other)
        assert line.startswith(f"{name}: ")


def test_a_folder_that_ranks_do_not_share_is_no_checkpoint(make_trainer, make_model, make_examples, tmp_path):
    trainer = make_trainer(make_model(), make_examples(4))
    with pytest.raises(OSError, match=r"lacks the files of ranks \[0\]: it must be a folder that all nodes share"):
        trainer._check_shared(tmp_path)
    (tmp_path / "progress_0.pt").touch()
    trainer._check_shared(tmp_path)
    (tmp_path / "progress_0.pt").unlink()
    trainer.args.save_on_each_node = True
    trainer._check_shared(tmp_path)
