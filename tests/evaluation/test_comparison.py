"""Two models on the same sets, calibration and foreign texts: by hand, and by the command."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast import cli
from infobert_fast.data.corpora import load_nli, load_texts
from infobert_fast.data.tasks import NLI, TASKS
from infobert_fast.evaluation.accuracy import predictions
from infobert_fast.evaluation.comparison import Answered, Comparison, compare_models, comparison_table
from infobert_fast.evaluation.report import as_json, classified, told_apart
from infobert_fast.metrics.glue import f1
from infobert_fast.metrics.paired import mcnemar


def answered(right, labels=None):
    labels = np.zeros(len(right), dtype=int) if labels is None else labels
    return Answered("accuracy", np.where(right, labels, labels + 1), labels, np.asarray(right))


def test_two_classifiers():
    first = np.arange(100) < 60
    second = (np.arange(100) < 58) | (np.arange(100) >= 80)  # 2 worse, 20 better
    found = compare_models({"a": answered(first)}, {"a": answered(second)})["a"]
    assert found.difference == pytest.approx(18)
    assert found.p == pytest.approx(mcnemar(first, second)) == pytest.approx(0.000121, abs=1e-6)
    # The normal interval of a paired difference, which the bootstrap must resemble
    spread = 1.96 * np.sqrt((22 - 18**2 / 100) / 100**2) * 100
    assert (found.low, found.high) == (pytest.approx(18 - spread, abs=1.5), pytest.approx(18 + spread, abs=1.5))
    assert found.better == 1
    turned = compare_models({"a": answered(second)}, {"a": answered(first)})["a"]
    assert (turned.better, turned.difference) == (0, pytest.approx(-18))
    header, (row,) = comparison_table({"a": found}, ("A", "B"))
    assert row[:4] == ["a", "100", "accuracy", "+18.0"]
    assert row[-2:] == ["0.00012", "B"]
    assert len(header) == len(row)


def test_a_difference_that_chance_explains_is_not_shown():
    first, second = np.arange(50) < 25, (np.arange(50) < 22) | (np.arange(50) > 41)  # 3 and 8 alone: p is 0.23
    found = compare_models({"a": answered(first)}, {"a": answered(second)})["a"]
    assert (found.better, found.difference) == (None, pytest.approx(10))
    assert comparison_table({"a": found}, ("A", "B"))[1][0][-1] == "not shown"
    same = compare_models({"a": answered(first)}, {"a": answered(first)})["a"]
    assert same == Comparison("accuracy", 50, 0.0, 0.0, 0.0, 1.0)
    assert same.better is None


def test_other_measures_are_decided_by_the_interval():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    good, poor = (np.where(random.random(200) < share, labels, 1 - labels) for share in (0.95, 0.6))
    measure = TASKS["mrpc"].metrics[0]
    one, other = (Answered(measure, values, labels, values == labels) for values in (poor, good))
    found = compare_models({"a": one}, {"a": other})["a"]
    assert found.difference == pytest.approx(100 * (f1(good, labels) - f1(poor, labels)))
    assert found.low > 0
    assert found.better == 1
    questions = [Answered("f1", values, None, values == 1) for values in (np.array([0.5, 1, 0]), np.array([1, 1, 0.0]))]
    assert compare_models({"q": questions[0]}, {"q": questions[1]})["q"].difference == pytest.approx(50 / 3)
    numbers = [Answered("pearson", values, np.arange(9.0), None) for values in (np.arange(9.0), -np.arange(9.0))]
    found = compare_models({"n": numbers[0]}, {"n": numbers[1]})["n"]
    assert (found.p, found.better, found.difference) == (None, 0, pytest.approx(-200))


def test_calibration_stands_beside_accuracy():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3]])
    result = classified(NLI, np.array([0, 1]), np.array([0, 2]), probabilities)
    assert result.scores["brier"] == pytest.approx(100 * ((0.04 + 0.01 + 0.01) + (0.04 + 0.25 + 0.49)) / 2)
    assert result.scores["calibration_error"] == pytest.approx(100 * (0.2 + 0.5) / 2)
    assert result.measure == "accuracy"


def test_foreign_texts_are_told_apart_by_confidence():
    random = np.random.default_rng(0)
    inside, outside = random.normal(1, 1, 400), random.normal(0, 1, 300)
    result = told_apart(inside, outside, "dev")
    # Two normals whose means differ by d: Phi(d / sqrt 2) = 0.7602
    assert result.value == pytest.approx(76.0, abs=3.5)
    assert result.low < 76.0 < result.high
    assert 3 < result.high - result.low < 10
    row = as_json({"ood": result})["ood"]
    assert (row["clean"], row["examples"]) == ("dev", 300)
    assert "drop" not in row


# ---- the command


@pytest.fixture
def two(nli_folder, tmp_path):
    """The tiny model, and one that answers by chance."""
    shutil.copytree(nli_folder / "model", tmp_path / "first")
    model = AutoModelForSequenceClassification.from_pretrained(nli_folder / "model")
    with torch.no_grad():
        model.classifier.out_proj.weight.copy_(model.classifier.out_proj.weight[[2, 0, 1]])
    model.save_pretrained(tmp_path / "second")
    AutoTokenizer.from_pretrained(nli_folder / "model").save_pretrained(tmp_path / "second")
    return [str(tmp_path / "first"), str(tmp_path / "second")]


def test_two_models_by_the_command(two, nli_folder, tmp_path, capsys):
    test = f"t={nli_folder / 'test.jsonl'}"
    command = ["evaluate", *two, "--data", test, "--no_card", "--predictions", str(tmp_path / "p")]
    assert cli.main([*command, "--output", str(tmp_path / "r.json")]) == 0
    content = json.loads((tmp_path / "r.json").read_text())
    assert list(content["models"]) == two
    labels = np.array(load_nli(test)["label"])
    right = []
    for name in two:
        model = AutoModelForSequenceClassification.from_pretrained(name)
        found = predictions(model, AutoTokenizer.from_pretrained(name), load_nli(test)).values
        right.append(found == labels)
        assert content["models"][name]["t"]["accuracy"] == pytest.approx(right[-1].mean())
    row = content["comparison"]["t"]
    assert row["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert row["mcnemar_p"] == pytest.approx(mcnemar(*right))
    assert row["low"] <= row["difference"] <= row["high"]
    assert len(list((tmp_path / "p").rglob("t.tsv"))) == 2
    printed = capsys.readouterr().out
    assert "second minus first" in printed
    assert cli.main([*command, "--output", str(tmp_path / "r.md")]) == 0
    assert "McNemar's p" in (tmp_path / "r.md").read_text()


def test_foreign_texts_by_the_command(nli_folder, tmp_path):
    """Their labels are not read; of the same texts the confidence is the same."""
    rows = [json.loads(line) for line in (nli_folder / "test.jsonl").read_text().splitlines()]
    same = [{"premise": row["premise"], "hypothesis": row["hypothesis"], "label": "?"} for row in rows]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same))
    command = ["evaluate", str(nli_folder / "model"), "--data", f"t={nli_folder / 'test.jsonl'}", "--no_card"]
    assert cli.main([*command, "--ood", f"same={tmp_path / 'same.jsonl'}", "--output", str(tmp_path / "r.json")]) == 0
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["same"]["auroc"] == pytest.approx(0.5)
    assert (content["same"]["clean"], content["same"]["examples"]) == ("t", len(rows))


@pytest.mark.parametrize(
    ("rows", "source", "message"),
    [
        ([{"text": "a"}], {}, r"has no fields premise and hypothesis; it has \['text'\]: name them"),
        ([{"premise": "a", "hypothesis": None}], {}, "line 1 has hypothesis None, which is no text"),
    ],
)
def test_foreign_sets_that_cannot_be_read(tmp_path, rows, source, message):
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        load_texts({"path": str(tmp_path / "x.jsonl"), **source})


def test_foreign_texts_of_other_columns(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": "one", "b": "two"}\n')
    found = load_texts({"path": str(tmp_path / "x.jsonl"), "premise": "a", "hypothesis": "b"})
    assert found.to_list() == [{"premise": "one", "hypothesis": "two", "label": -1}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["M", "M", "--data", "t.jsonl"], "give one model, or two different ones to compare"),
        (["M", "A", "B", "--data", "t.jsonl"], "give one model, or two different ones to compare"),
        (["M", "A", "--data", "t.jsonl", "--information", "t.jsonl"], "it is measured on one: leave one out"),
        (["M", "--data", "t.jsonl", "--ood", "t.jsonl"], "are both named"),
        (["M", "--data", "t.jsonl", "--ood", "absent.jsonl"], "does not exist"),
    ],
)
def test_refusals(nli_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    shutil.copy(nli_folder / "test.jsonl", tmp_path / "t.jsonl")
    assert cli.main(["evaluate", *(str(nli_folder / "model") if a == "M" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err
