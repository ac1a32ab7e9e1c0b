"""The command line, as a user types it: settings and overrides, a whole run, evaluation, and every refusal's words."""

import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from infobert_fast.cli import files, main, train
from infobert_fast.training import run
from infobert_fast.training.models.critic import attach_critic, load_without_critic


def write(path, **settings):
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("learning_rate: 2e-5\nalpha: 1e-2\nadv_steps: 2\ntrain_data: [a.jsonl, b.jsonl]\n")
    model_args, data_args, args = train.parse_training(
        [str(config), "--adv_steps", "4", "--version", "-1", "--model_name_or_path", "m", "--bf16", "False"]
    )
    assert (args.learning_rate, args.alpha, args.adv_steps, args.version) == (2e-5, 1e-2, 4, -1)
    assert args.beta == 5e-3
    assert data_args.train_data == ["a.jsonl", "b.jsonl"]
    assert model_args.model_name_or_path == "m"


def test_an_objective_takes_back_what_the_file_says_of_it(tmp_path):
    """`infobert train anli_roberta_large --objective vanilla` means the published setting, otherwise."""
    args = train.parse_training(["anli_roberta_large", "--objective", "vanilla"])[2]
    assert (args.version, args.adv_steps, args.adv_init_mag, args.learning_rate) == (-1, 1, 0.0, 2e-5)
    args = train.parse_training(["anli_roberta_large", "--objective", "freelb"])[2]
    assert (args.version, args.adv_steps, args.adv_lr) == (-1, 3, 4e-2)
    with pytest.raises(ValueError, match="`adv_steps` was 2 with `objective` 'smart'"):
        train.parse_training(["anli_roberta_large", "--objective", "smart", "--adv_steps", "2"])
    with pytest.raises(ValueError, match="`version` was 6 with `objective` 'rdrop'"):
        train.parse_training([write(tmp_path / "a.yaml", objective="rdrop", version=6, output_dir="out")])


def test_yaml_sources_may_be_mappings(tmp_path):
    config = write(tmp_path / "a.yaml", train_data=[{"path": "a.jsonl", "limit": 3}], output_dir="out")
    assert train.parse_training([config])[1].train_data == [{"path": "a.jsonl", "limit": 3}]


def test_one_source_needs_no_list(tmp_path):
    config = write(tmp_path / "a.yaml", train_data="a.jsonl", eval_data={"path": "b.jsonl"}, output_dir="out")
    data_args = train.parse_training([config])[1]
    assert (data_args.train_data, data_args.eval_data) == (["a.jsonl"], [{"path": "b.jsonl"}])


def test_bfloat16_is_the_default_only_where_nothing_contradicts_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert train._defaults({})["bf16"]
    assert not any(
        train._defaults(chosen)["bf16"] for chosen in ({"fp16": True}, {"use_cpu": True}, {"deepspeed": "z"})
    )


def test_deepspeed_configurations_by_name(tmp_path, capsys):
    args = train.parse_training(["--deepspeed", "zero2_bf16", "--output_dir", str(tmp_path), "--use_cpu", "True"])[2]
    assert json.loads(Path(args.deepspeed).read_text())["torch_autocast"] == {
        "enabled": True,
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],
    }
    assert main(["train", "--deepspeed", "zero9"]) == 2
    assert (
        "`deepspeed` was 'zero9', which is no file; ready ones are zero1, zero1_bf16, zero2, zero2_bf16"
        in capsys.readouterr().err
    )


def test_fsdp2_configurations_by_name(tmp_path, capsys):
    args = train.parse_training(["--fsdp_config", "fsdp2_keep", "--output_dir", str(tmp_path), "--use_cpu", "True"])[2]
    assert args.fsdp
    assert args.fsdp_plugin_args["fsdp_version"] == 2
    assert not args.fsdp_plugin_args["reshard_after_forward"]
    assert main(["train", "--fsdp_config", "fsdp9"]) == 2
    assert "`fsdp_config` was 'fsdp9', which is no file; ready ones are fsdp2, fsdp2_keep" in capsys.readouterr().err


def test_deepspeeds_launcher_may_name_the_rank_first(capsys):
    assert main(["--local_rank=0", "--help"]) == 0
    assert "evaluate MODEL" in capsys.readouterr().out


def test_published_settings_parse():
    model_args, data_args, args = train.parse_training(["anli_roberta_large"])
    assert (args.learning_rate, args.alpha, args.beta, args.adv_steps, args.cl, args.ch) == (
        2e-5,
        5e-3,
        5e-3,
        3,
        0.5,
        0.9,
    )
    assert (model_args.hidden_dropout_prob, model_args.attention_probs_dropout_prob) == (0.1, 0)
    assert data_args.train_data == ["anli-full"]


def test_an_attention_that_is_not_installed_is_a_message(nli_folder, tmp_path, capsys):
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed")
    given = ["--model_name_or_path", str(nli_folder / "model"), "--train_data", str(nli_folder / "train.jsonl")]
    given += ["--output_dir", str(tmp_path), "--attn_implementation", "flash_attention_2", "--use_cpu", "True"]
    assert main(["train", *given]) == 2
    assert "the package for FlashAttention2 doesn't seem to be installed" in capsys.readouterr().err


def test_limits_do_not_widen_a_source():
    from infobert_fast.data.corpora import Source
    from infobert_fast.training.run import _limited

    assert _limited(Source("a.jsonl"), 5, 1) == Source("a.jsonl", limit=5, seed=1)
    assert _limited(Source("a.jsonl", limit=3, seed=2), 5, 1) == Source("a.jsonl", limit=3, seed=2)


def test_dropout_under_another_name_is_refused(tmp_path):
    from transformers import DistilBertConfig

    from infobert_fast.training.run import ModelArguments, _config

    DistilBertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`hidden_dropout_prob` was 0\.3, but a DistilBertConfig calls its dropout"):
        _config(ModelArguments(str(tmp_path), hidden_dropout_prob=0.3))


def test_the_example_configuration_parses():
    args = train.parse_training(["examples/nli.yaml"])[2]
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
    assert main(["train", config, "--output_dir", str(out), "--alpha", "0.1", "--report_to", "tensorboard"]) == 0
    printed = capsys.readouterr()
    assert "resolved configuration" in printed.err
    assert "'afr_lower_bound'" in printed.out
    assert "throughput: " in printed.err
    assert "examples/s" in printed.err
    assert json.loads((out / "all_results.json").read_text())["tokens_per_second"] > 0
    weights = load_file(out / "model.safetensors")
    assert weights["mi_estimator.F_func.0.weight"].shape == (300, 32)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert all(
        {"task_loss", "ib_upper_bound", "afr_lower_bound_max"} <= set(line) for line in history if "loss" in line
    )
    assert list(out.rglob("events.*"))
    accuracy = json.loads((out / "all_results.json").read_text())["eval_clean_accuracy"]
    card = ModelCard.load(out / "README.md")
    assert "adversarial-robustness" in card.data.tags
    assert "| adv_steps |" in card.text
    assert f"| eval_clean_accuracy | {accuracy:.4g} |" in card.text

    results = tmp_path / "deep" / "results.json"
    command = ["evaluate", str(out), "--data", f"clean={nli_folder / 'test.jsonl'}", "--output", str(results)]
    assert main(command) == 0
    result = json.loads(results.read_text())["clean"]
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["examples"] == 48
    assert result["low"] < result["accuracy"] < result["high"]
    assert "clean" in capsys.readouterr().out


def test_training_data_can_be_limited_at_random(nli_folder, tmp_path):
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
    model_args, data_args, args = train.parse_training(
        [config, "--train_limit", "8", "--per_device_train_batch_size", "4", "--version", "-1"]
    )
    assert "eval_loss" not in run.train(run.build_trainer(model_args, data_args, args))
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2


def test_dropout_and_labels_reach_the_model(nli_folder, tmp_path):
    arguments = ["--model_name_or_path", str(nli_folder / "model"), "--train_data", str(nli_folder / "train.jsonl")]
    arguments += ["--output_dir", str(tmp_path), "--max_steps", "1", "--use_cpu", "True", "--save_strategy", "no"]
    assert main(["train", *arguments, "--hidden_dropout_prob", "0.3", "--report_to", "none"]) == 0
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.hidden_dropout_prob == 0.3
    assert config.attention_probs_dropout_prob == 0.1
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "infobert trian: there is no such command; it must be one of train, evaluate"),
        (["train", "absent.yaml"], "`config` was 'absent.yaml', which is no file; published settings are"),
        (["train", "--output_dir", "o"], "`train_data` is empty; name at least one source"),
        (
            ["train", "--output_dir", "o", "--train_data", "absent.jsonl", "--alpha", "-1"],
            "`alpha` was -1.0; it must be",
        ),
        (["evaluate", "m", "--data", "absent.jsonl"], "absent.jsonl) does not exist"),
        (["train", "broken.yaml"], "infobert train: "),
        (["evaluate", "absent_model", "--data", "one.jsonl"], "infobert evaluate: "),
    ],
)
def test_refusals(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1,")
    (tmp_path / "one.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "neutral"}\n')
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_unknown_names_are_errors(tmp_path, capsys):
    config = write(tmp_path / "a.yaml", learning_rat=1.0)
    assert main(["train", config]) == 2
    assert "sets learning_rat, which no argument is called" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--learning_rat", "1"])
    assert "--learning_rat" in capsys.readouterr().err
    listing = tmp_path / "list.yaml"
    listing.write_text("- a\n")
    assert main(["train", str(listing)]) == 2
    assert "must be a mapping of argument names to values" in capsys.readouterr().err


def test_a_result_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        files.write_json(path, {"x": torch.zeros(1)})
    assert path.read_text() == "old"


def test_what_is_known_before_training_is_a_message(nli_folder, tmp_path, capsys):
    """Another run's checkpoint, a budget that a text exceeds, positions that the model lacks, a file for a folder."""
    out = tmp_path / "out"
    given = ["--model_name_or_path", str(nli_folder / "model"), "--train_data", str(nli_folder / "train.jsonl")]
    given += ["--use_cpu", "True", "--report_to", "none", "--version", "-1", "--adv_steps", "1", "--max_steps", "1"]
    given += ["--per_device_train_batch_size", "4", "--disable_tqdm", "True"]

    def refusal(*more, folder=out):
        capsys.readouterr()
        assert main(["train", *given, "--output_dir", str(folder), *more]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert main(["train", *given, "--output_dir", str(out)]) == 0
    assert "arguments.learning_rate: " in refusal("--learning_rate", "0.1", "--resume_from_checkpoint", "auto")
    assert "nowhere, which is not whole" in refusal("--resume_from_checkpoint", str(tmp_path / "nowhere"))
    assert "`batch_tokens` was 3; the longest example has" in refusal("--batch_tokens", "3")
    assert main(["train", *given, "--output_dir", str(out), "--resume_from_checkpoint", "auto"]) == 0
    (tmp_path / "file").write_text("")
    assert f"`output_dir` was {tmp_path / 'file'}" in refusal(folder=tmp_path / "file")
    assert "unrecognized arguments: --alhpa" in _usage(["train", *given, "--alhpa", "1"], capsys)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"premise": "the red cup " * 40, "hypothesis": "the cup", "label": "neutral"}) + "\n")
    assert "the model has positions for 46: set `max_length` to 46" in refusal("--train_data", str(long))
    assert main(["train", *given, "--output_dir", str(out), "--train_data", str(long), "--max_length", "46"]) == 0
    # Where nothing is trained, texts are cut there.
    assert main(["evaluate", str(nli_folder / "model"), "--data", str(long)]) == 0


def test_the_critic_is_left_in_its_checkpoint_without_a_word(nli_folder, tmp_path, capfd):
    """By every command that only uses a model; whatever else is unexpected is reported, and other loads are too."""
    model = AutoModelForSequenceClassification.from_pretrained(nli_folder / "model")
    attach_critic(model, 8)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(nli_folder / "model").save_pretrained(tmp_path / "model")
    neighbors = tmp_path / "neighbors.json"
    neighbors.write_text("{}")
    data = ["--data", str(nli_folder / "test.jsonl"), "--limit", "2"]
    for command, more in (
        ("evaluate", data),
        ("attack", [*data, "--neighbors", str(neighbors)]),
        ("explain", ["a box", "--output", str(tmp_path / "page.html")]),
    ):
        assert main([command, str(tmp_path / "model"), *more]) == 0
        said = capfd.readouterr()
        assert "mi_estimator" not in said.out + said.err
    model.stray = torch.nn.Linear(2, 1, bias=False)
    model.save_pretrained(tmp_path / "model")
    for load, unexpected in (
        (functools.partial(load_without_critic, AutoModelForSequenceClassification), {"stray.weight"}),
        (AutoModelForSequenceClassification.from_pretrained, {"stray.weight", *_names(model.mi_estimator)}),
    ):
        loaded, report = load(str(tmp_path / "model"), output_loading_info=True)
        assert set(report["unexpected_keys"]) == unexpected
        assert isinstance(loaded, type(model))
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def _names(critic):
    return {f"mi_estimator.{name}" for name in critic.state_dict()}


def _usage(arguments, capsys):
    """What argparse says, in lines that one sees at a glance."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(arguments)
    said = capsys.readouterr().err
    assert error.value.code == 2
    assert len(said.splitlines()) < 5
    return said


def test_evaluation_refuses_before_it_begins(nli_folder, capsys):
    given = ["evaluate", str(nli_folder / "model"), "--data", str(nli_folder / "test.jsonl")]
    for more, said in (
        (["--max_length", "3"], "`max_length` was 3; a pair takes at least 6 tokens"),
        (["--n_best", "0"], "`n_best` was 0"),
        (["--output", "table.txt"], "`output` was table.txt; it must end in .json or .md"),
    ):
        assert main([*given, *more]) == 2
        assert said in capsys.readouterr().err


def test_what_cannot_be_written_is_refused_before_the_work(nli_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "r.md").mkdir()
    data, train = str(nli_folder / "test.jsonl"), str(nli_folder / "train.jsonl")
    for command, argument, path in (
        ("evaluate", "output", "file/r.md"),
        ("evaluate", "output", "r.md"),
        ("evaluate", "predictions", "file"),
        ("evaluate", "mi_report", "file/deep/mi.png"),
        ("attack", "output", "file"),
        ("explain", "output", "file/page.html"),
        ("explain", "output", "file/page.png"),
    ):
        more = {"evaluate": ["--information", train], "attack": ["--neighbors", data], "explain": []}[command]
        given = [command, str(nli_folder / "model"), "--data", data, *more, f"--{argument}", str(tmp_path / path)]
        if command == "attack":
            (tmp_path / "neighbors.json").write_text("{}")
            given[given.index("--neighbors") + 1] = str(tmp_path / "neighbors.json")
        assert main(given) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert f"`{argument}` was {tmp_path / path}, wh" in said
    assert main(["evaluate", "absent", "--data", data, "--information", train, "--mi_report", "mi.pdf"]) == 2
    assert "`mi_report` was mi.pdf; it must end in .png" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_models_and_tokenizers_that_do_not_fit_are_a_message(nli_folder, tmp_path, capsys):
    """Padding before the sentence, for an encoder; a decoder as a classifier fits."""
    tokenizer = AutoTokenizer.from_pretrained(nli_folder / "model")
    left, causal = tmp_path / "left", tmp_path / "causal"
    AutoModelForSequenceClassification.from_pretrained(nli_folder / "model").save_pretrained(left)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=tokenizer.pad_token_id
    )
    config.id2label = dict(enumerate(("entailment", "neutral", "contradiction")))
    GPT2ForSequenceClassification(config).save_pretrained(causal)
    tokenizer.save_pretrained(causal)
    tokenizer.save_pretrained(left)
    settings = left / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    data, train = str(nli_folder / "test.jsonl"), str(nli_folder / "train.jsonl")
    neighbors = tmp_path / "neighbors.json"
    neighbors.write_text("{}")
    training = [
        "--train_data",
        train,
        "--output_dir",
        str(tmp_path / "out"),
        "--use_cpu",
        "True",
        "--report_to",
        "none",
    ]
    for command, said in (
        (["train", "--model_name_or_path", str(left), *training], f"`model_name_or_path` was {left}, whose tokenizer"),
        (["evaluate", str(left), "--data", data], f"`model` was {left}, whose tokenizer pads on the left"),
        (["attack", str(left), "--data", data, "--neighbors", str(neighbors)], f"`model` was {left}, whose tokenizer"),
        (["explain", str(left), "a box"], f"`model` was {left}, whose tokenizer pads on the left"),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err
    # A causal classifier reads its last token, which sees the sentence.
    assert main(["train", "--model_name_or_path", str(causal), *training, "--max_steps", "2"]) == 0
    assert main(["evaluate", str(causal), "--data", data, "--information", train]) == 0
    assert main(["explain", str(causal), "a box", "--output", str(tmp_path / "causal.html")]) == 0
