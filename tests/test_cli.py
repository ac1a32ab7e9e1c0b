"""The command line, as a user types it: settings and overrides, a whole run, evaluation, and every refusal's words."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from infobert_fast import cli


def write(path, **settings):
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("learning_rate: 2e-5\nalpha: 1e-2\nadv_steps: 2\ntrain_data: [a.jsonl, b.jsonl]\n")
    model_args, data_args, args = cli.parse_training(
        [str(config), "--adv_steps", "4", "--version", "-1", "--model_name_or_path", "m", "--bf16", "False"]
    )
    assert (args.learning_rate, args.alpha, args.adv_steps, args.version) == (2e-5, 1e-2, 4, -1)
    assert args.beta == 5e-3
    assert data_args.train_data == ["a.jsonl", "b.jsonl"]
    assert model_args.model_name_or_path == "m"


def test_yaml_sources_may_be_mappings(tmp_path):
    config = write(tmp_path / "a.yaml", train_data=[{"path": "a.jsonl", "limit": 3}], output_dir="out")
    assert cli.parse_training([config])[1].train_data == [{"path": "a.jsonl", "limit": 3}]


def test_the_example_configuration_parses():
    args = cli.parse_training(["examples/nli.yaml"])[2]
    assert (args.version, args.adv_steps, args.learning_rate, args.cl, args.ch) == (6, 3, 1e-4, 0.5, 0.9)


def test_train_then_evaluate(nli_folder, tmp_path, capsys):
    out = tmp_path / "out"
    config = write(
        tmp_path / "run.yaml",
        model_name_or_path=str(nli_folder / "model"),
        train_data=[str(nli_folder / "train.jsonl")],
        eval_data=[f"clean={nli_folder / 'test.jsonl'}"],
        per_device_train_batch_size=16,
        adv_steps=2,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    assert cli.main(["train", config, "--output_dir", str(out), "--alpha", "0.1", "--report_to", "tensorboard"]) == 0
    printed = capsys.readouterr()
    assert "resolved configuration" in printed.err
    assert "'afr_lower_bound'" in printed.out
    weights = load_file(out / "model.safetensors")
    assert weights["mi_estimator.F_func.0.weight"].shape == (300, 32)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert all(
        {"task_loss", "ib_upper_bound", "afr_lower_bound_max"} <= set(line) for line in history if "loss" in line
    )
    assert list(out.rglob("events.*"))
    accuracy = json.loads((out / "all_results.json").read_text())["eval_clean_accuracy"]

    results = tmp_path / "deep" / "results.json"
    command = ["evaluate", str(out), "--data", f"clean={nli_folder / 'test.jsonl'}", "--output", str(results)]
    assert cli.main(command) == 0
    result = json.loads(results.read_text())["clean"]
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["examples"] == 48
    assert result["low"] < result["accuracy"] < result["high"]
    assert "clean" in capsys.readouterr().out


def test_training_data_can_be_limited_at_random(nli_folder, tmp_path):
    from infobert_fast.training.run import train

    config = write(
        tmp_path / "run.yaml",
        model_name_or_path=str(nli_folder / "model"),
        train_data=[str(nli_folder / "train.jsonl")],
        output_dir=str(tmp_path),
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    model_args, data_args, args = cli.parse_training(
        [config, "--train_limit", "8", "--per_device_train_batch_size", "4", "--version", "-1"]
    )
    assert "eval_loss" not in train(model_args, data_args, args)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2


def test_dropout_and_labels_reach_the_model(nli_folder, tmp_path):
    arguments = ["--model_name_or_path", str(nli_folder / "model"), "--train_data", str(nli_folder / "train.jsonl")]
    arguments += ["--output_dir", str(tmp_path), "--max_steps", "1", "--use_cpu", "True", "--save_strategy", "no"]
    assert cli.main(["train", *arguments, "--hidden_dropout_prob", "0.3", "--report_to", "none"]) == 0
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.hidden_dropout_prob == 0.3
    assert config.attention_probs_dropout_prob == 0.1
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "the command was 'trian'; it must be train or evaluate"),
        (["train", "absent.yaml"], "`config` was 'absent.yaml', which is no file; published settings are"),
        (["train", "--output_dir", "o"], "`train_data` is empty; name at least one source"),
        (
            ["train", "--output_dir", "o", "--train_data", "absent.jsonl", "--alpha", "-1"],
            "`alpha` was -1.0; it must be",
        ),
        (["evaluate", "m", "--data", "absent.jsonl"], "absent.jsonl) does not exist"),
    ],
)
def test_refusals(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_unknown_names_are_errors(tmp_path, capsys):
    config = write(tmp_path / "a.yaml", learning_rat=1.0)
    assert cli.main(["train", config]) == 2
    assert "sets learning_rat, which no argument is called" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", "--learning_rat", "1"])
    assert "--learning_rat" in capsys.readouterr().err
    listing = tmp_path / "list.yaml"
    listing.write_text("- a\n")
    assert cli.main(["train", str(listing)]) == 2
    assert "must be a mapping of argument names to values" in capsys.readouterr().err


def test_a_result_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        cli._write_json(path, {"x": torch.zeros(1)})
    assert path.read_text() == "old"
