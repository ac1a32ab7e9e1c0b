"""Every task through the command: one text, pairs, numbers, streams, label orders, and the plan of a run."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from infobert_fast import cli
from infobert_fast.cli.train import parse_training
from infobert_fast.data.tasks import TASKS
from infobert_fast.training.plan import plan_of
from infobert_fast.training.run import build_trainer


@pytest.fixture
def settings(nli_folder, tmp_path):
    """A tiny run on the CPU by the command line; nothing is kept but the result."""
    return [
        *("--model_name_or_path", str(nli_folder / "model"), "--output_dir", str(tmp_path / "out")),
        *("--use_cpu", "True", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "True"),
        *("--per_device_train_batch_size", "4", "--adv_steps", "2", "--logging_steps", "1"),
    ]


def write_task(path, task, count=12):
    rows = []
    for i in range(count):
        row = {text: f"the box {i} {text}" for text in task.texts}
        rows.append({**row, "label": task.labels[i % len(task.labels)] if task.labels else i / 2})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("nli", "mnli")])
def test_glues_tasks(settings, tmp_path, name):
    task = TASKS[name]
    path = write_task(tmp_path / "train.jsonl", task)
    arguments = ["--task", name, "--train_data", path, "--eval_data", f"dev={path}", "--max_steps", "1", *settings]
    assert cli.main(["train", *arguments]) == 0
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    assert {f"eval_dev_{metric}" for metric in task.metrics} <= set(results)
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.num_labels == (len(task.labels) or 1)
    assert config.problem_type == ("single_label_classification" if task.labels else "regression")
    assert not task.labels or list(config.id2label.values()) == list(task.labels)
    table = tmp_path / "table.json"
    task_of_model = [] if name in ("cola", "sst2") else ["--task", name]  # told by their labels
    assert cli.main(["evaluate", str(out), "--data", f"dev={path}", "--output", str(table), *task_of_model]) == 0
    row = json.loads(table.read_text())["dev"]
    for metric in task.metrics:
        assert row[metric] == pytest.approx(results[f"eval_dev_{metric}"], abs=1e-5)


def test_regression_fits_numbers(nli_folder, settings, tmp_path):
    path = write_task(tmp_path / "train.jsonl", TASKS["stsb"])
    arguments = ["--task", "stsb", "--train_data", path, "--max_steps", "2", "--version", "-1", *settings]
    trainer = build_trainer(*parse_training([*arguments, "--adv_init_mag", "0", "--learning_rate", "0"]))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["labels"].dtype == torch.float32
    with torch.no_grad():
        logits = trainer.model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    expected = (logits - batch["labels"]).square().mean()
    trainer.model.train()
    loss = trainer.compute_loss(
        trainer.model.eval(), {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "labels")}
    )
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)


def test_a_streamed_corpus_trains(nli_folder, settings, tmp_path, capsys):
    arguments = ["--train_data", str(nli_folder / "train.jsonl"), "--streaming", "True", *settings]
    assert cli.main(["train", *arguments, "--max_steps", "2"]) == 0
    assert json.loads((tmp_path / "out/trainer_state.json").read_text())["global_step"] == 2
    assert cli.main(["train", *arguments]) == 2
    assert "`streaming` is set and `max_steps` is not" in capsys.readouterr().err
    assert cli.main(["train", *arguments, "--max_steps", "2", "--train_limit", "8"]) == 2
    assert "`train_limit` was 8 with `streaming`" in capsys.readouterr().err


def test_a_checkpoint_in_another_order_keeps_what_it_knows(nli_folder, settings, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(nli_folder / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(nli_folder / "model")
    model.config.id2label = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    arguments = [*settings, "--train_data", str(nli_folder / "train.jsonl")]
    arguments[1] = str(tmp_path / "other")
    trainer = build_trainer(*parse_training(arguments))
    batch = tokenizer(["the box is red"], ["the box"], return_tensors="pt")
    with torch.no_grad():
        before, after = model(**batch).logits, trainer.model.eval()(**batch).logits
    torch.testing.assert_close(after, before[:, [1, 2, 0]])  # entailment, neutral, contradiction
    assert list(trainer.model.config.id2label.values()) == ["entailment", "neutral", "contradiction"]


def test_a_dry_run_says_what_a_run_does(nli_folder, settings, tmp_path, capsys):
    arguments = ["--train_data", str(nli_folder / "train.jsonl"), "--num_train_epochs", "2", *settings]
    arguments += ["--gradient_accumulation_steps", "3", "--warmup_steps", "0.25"]
    assert cli.main(["train", *arguments, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "optimisation steps" in shown
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    trainer = build_trainer(*parse_training(arguments))
    plan = plan_of(trainer, 128)
    assert (plan.examples, plan.accumulation, plan.steps, plan.warmup_steps) == (96, 3, 16, 4)  # 24 batches an epoch
    assert plan.tokens == sum(trainer.train_dataset["length"])
    assert plan.parameters == trainer.model.num_parameters()
    assert plan.critic_parameters == sum(p.numel() for p in trainer.model.mi_estimator.parameters())
    assert plan.memory["weights"] == pytest.approx(4 * plan.parameters / 2**20)
    assert plan.memory["optimiser"] == 2 * plan.memory["gradients"] == 2 * plan.memory["weights"]
    # 34 bytes x 2 for float32, 4 sentences of the longest, 16 units, 2 layers
    assert plan.memory["activations"] == pytest.approx(68 * 4 * plan.longest * 16 * 2 / 2**20)
    assert trainer.train().global_step == plan.steps


def test_a_plan_knows_clean_passes_two_predictions_and_streams(nli_folder, settings):
    arguments = ["--train_data", str(nli_folder / "train.jsonl"), *settings]

    def plan(*more):
        return plan_of(build_trainer(*parse_training([*arguments, *more])), 30)

    adversarial = plan("--adv_steps", "2", "--adv_clean_pass", "True")
    assert adversarial.passes == 3
    compared = plan("--objective", "r3f", "--version", "-1", "--adv_steps", "1", "--adv_init_mag", "0")
    assert compared.passes == 2
    assert compared.memory["activations"] == 2 * adversarial.memory["activations"]
    streamed = plan("--streaming", "True", "--max_steps", "2")
    assert (streamed.longest, streamed.tokens) == (30, None)


def test_a_dry_run_refuses_what_a_run_refuses(nli_folder, settings, tmp_path, capsys):
    assert cli.main(["train", "--train_data", str(tmp_path / "absent.jsonl"), "--dry_run", *settings]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_published_settings_of_all_tasks_parse():
    for name in ("squad_roberta_large", "squad_bert_large"):
        model_args, data_args, args = parse_training([name])
        assert data_args.task == "qa"
        assert (data_args.max_length, data_args.doc_stride, args.cl, args.ch) == (384, 128, 0.75, 0.95)
        assert (args.beta, args.alpha, args.learning_rate, args.adv_steps) == (5e-5, 5e-3, 3e-5, 2)
        assert (args.adv_lr, args.adv_init_mag, args.adv_max_norm) == (2e-2, 2e-2, 4e-2)
        assert (model_args.hidden_dropout_prob, model_args.attention_probs_dropout_prob) == (0.1, 0.1)
    model_args, data_args, args = parse_training(["anli_bert_large", "--anli_repeat", "10", "20", "10"])
    assert (data_args.train_data, data_args.anli_repeat, data_args.fever_order) == (
        ["anli-full"],
        [10, 20, 10],
        "reference",
    )
    assert (args.beta, args.weight_decay, args.warmup_steps) == (5e-3, 1e-5, 1000)
