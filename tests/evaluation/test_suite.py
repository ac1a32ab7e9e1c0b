"""Suites, their one table, and the check of the evaluator against published predictions."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering

from infobert_fast import cli
from infobert_fast.cli.models import task_for
from infobert_fast.data.corpora import load_nli
from infobert_fast.data.labels import LABELS
from infobert_fast.data.source import Source
from infobert_fast.data.tasks import NLI, TASKS
from infobert_fast.evaluation.information import Information
from infobert_fast.evaluation.report import answered, as_json, as_markdown, classified, compare, table
from infobert_fast.evaluation.suite import SUITES, resolve
from infobert_fast.metrics.glue import pearson
from infobert_fast.metrics.squad import squad_scores


def test_published_predictions_give_the_published_accuracies(real_data):
    """RoBERTa-large on ANLI's dev sets, from its authors' predictions through our reader and our accuracy."""
    with open(real_data("anli/dev_reference_preds.jsonl"), encoding="utf-8") as file:
        predicted = {row["uid"]: row["preds"] for row in map(json.loads, file)}
    for number, expected in ((1, 73.8), (2, 50.6), (3, 46.1)):
        path = real_data(f"anli/dev_r{number}.jsonl")
        with open(path, encoding="utf-8") as file:
            order = [json.loads(line)["uid"] for line in file]
        found = np.array([LABELS.index(predicted[uid]["anli-roberta-large"]) for uid in order])
        result = classified(NLI, found, np.array(load_nli(path)["label"]))
        assert result.count == len(order) == (1_198 if number == 3 else 1_000)
        assert round(result.value, 1) == expected
        assert result.low < expected < result.high


# ---- what is in a suite


def test_suites_name_the_hub():
    sources, clean = resolve(["nli"])
    paths = {source.name: (source.path, source.config, source.split) for source in sources}
    assert paths["anli-r2"] == ("facebook/anli", None, "test_r2")
    assert paths["advglue-mnli-mm"] == ("AI-Secure/adv_glue", "adv_mnli_mismatched", "validation")
    assert not [name for name in paths if name.startswith("cad")]  # not on the hub
    assert clean["anli-r1"] == "mnli-m"
    sources, clean = resolve(["qa"])
    assert [source.name for source in sources] == ["squad", "addsent", "addonesent"]
    assert sources[1].revision == "refs/convert/parquet"


def test_suites_from_a_folder(tmp_path, caplog):
    row = {"premise": "a", "hypothesis": "b", "label": "neutral"}
    for path in ("mnli/dev_matched.jsonl", "anli_v1.0/R3/test.jsonl", "cad_nli/revised_premise_test.jsonl"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps(row))
    (tmp_path / "advglue").mkdir()
    (tmp_path / "advglue/dev.json").write_text(json.dumps({"mnli": [row], "mnli-mm": [row]}))
    sources, clean = resolve(["nli"], data_dir=str(tmp_path))
    assert [source.name for source in sources] == [
        "mnli-m",
        "anli-r3",
        "advglue-mnli",
        "advglue-mnli-mm",
        "cad-premise",
    ]
    assert [len(load_nli(source)) for source in sources] == [1] * 5
    assert clean == {"anli-r3": "mnli-m", "advglue-mnli": "mnli-m"}  # the others' counterparts are not there
    assert "suite nli: snli is not at hand and left out" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"holds no set of the suite 'qa', such as .*squad/dev-v1.1"):
        resolve(["qa"], data_dir=str(tmp_path))


def test_the_first_of_several_files_is_the_clean_one():
    sources, clean = resolve(["a=one.jsonl", "b=two.jsonl", "three.jsonl"])
    assert [source.path for source in sources] == ["one.jsonl", "two.jsonl", "three.jsonl"]
    assert clean == {"b": "a", "three": "a"}
    assert resolve(["one.jsonl"]) == ([Source("one.jsonl")], {})


def test_members_are_held_against_members():
    for members in SUITES.values():
        names = [member.name for member in members]
        assert len(set(names)) == len(names)
        assert all(member.clean in (None, *names) for member in members)


# ---- the table


def test_results_and_their_drops():
    labels = np.array([0, 1, 2, 0] * 25)
    right = classified(NLI, labels.copy(), labels)
    wrong = classified(NLI, np.where(np.arange(100) < 30, (labels + 1) % 3, labels), labels)
    assert (right.value, wrong.value) == (100, 70)
    assert (wrong.low, wrong.high) == pytest.approx((60.4, 78.1), abs=0.05)  # Wilson's, 70 of 100
    results = {"clean": right, "hard": wrong}
    compare(results, {"hard": "clean"})
    assert (results["hard"].drop, results["hard"].clean) == (pytest.approx(30), "clean")
    wrong.information = Information(50.25, 0.0625)
    header, rows = table(results)
    assert header == [
        "set",
        "examples",
        "accuracy",
        "95 % interval",
        "drop",
        "from",
        "I(T;X) upper, nats",
        "I(T_k;Z) lower, nats",
    ]
    assert rows[1] == ["hard", "100", "70.0", "60.4 to 78.1", "30.0", "clean", "50.2", "0.062"]
    assert rows[0][-2:] == ["", ""]
    text = as_markdown("model", results)
    assert "| hard | 100 | 70.0 | 60.4 to 78.1 | 30.0 | clean | 50.2 | 0.062 |" in text
    content = as_json(results)["hard"]
    assert content["accuracy"] == pytest.approx(0.7)
    assert content["drop"] == pytest.approx(0.3)
    assert content["information_upper"] == 50.25
    json.dumps(content)


def test_other_measures_have_bootstrap_intervals():
    random = np.random.default_rng(0)
    labels = random.normal(size=200)
    noisy = labels + random.normal(size=200)
    result = classified(TASKS["stsb"], noisy, labels)
    assert set(result.scores) == {"pearson", "spearman"}
    # Fisher's interval for the same correlation, which the bootstrap must resemble
    z = np.arctanh(result.value / 100)
    low, high = (100 * np.tanh(z + s * 1.96 / np.sqrt(197)) for s in (-1, 1))
    assert (result.low, result.high) == (pytest.approx(low, abs=3), pytest.approx(high, abs=3))
    asked = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 2_000}
    found = stats.bootstrap((noisy, labels), pearson, rng=np.random.default_rng(1), **asked).confidence_interval
    # The middle 90 % would be 2.2 narrower.
    assert (result.low, result.high) == (
        pytest.approx(100 * found.low, abs=0.8),
        pytest.approx(100 * found.high, abs=0.8),
    )
    assert classified(TASKS["stsb"], noisy, labels) == result  # from run to run


def test_the_interval_of_f1_over_questions():
    """The mean and 1.96 times its standard error, of shares worked out by hand."""
    right = {key: ["b c d"] for key in "qrstu"}
    result = answered(squad_scores(right, {"q": "b c d", "r": "x", "s": "b c", "t": "b", "u": "x"}))
    shares = [1, 0, 4 / 5, 2 / 4, 0]
    assert result.value == pytest.approx(46)
    half = 1.959963984540054 * (sum((share - 0.46) ** 2 for share in shares) / 4 / 5) ** 0.5
    assert (result.low, result.high) == pytest.approx((100 * (0.46 - half), 100 * (0.46 + half)))
    assert half == pytest.approx(0.39975, abs=1e-5)
    alone = answered(squad_scores({"q": ["x"]}, {"q": "x"}))
    assert (alone.low, alone.high) == (100, 100)


def test_answers_are_held_against_their_originals():
    right = {"q": ["x y"], "q-a": ["x y"], "r": ["z"]}
    result = answered(squad_scores(right, {"q": "x y", "q-a": "x", "r": "z"}))
    assert result.scores == pytest.approx(
        {"f1": 100 * (2 / 3 + 1) / 2, "exact_match": 50, "original_f1": 100, "original_exact_match": 100}
    )
    assert (result.drop, result.clean, result.count) == (pytest.approx(100 / 6), "its originals", 2)
    compare({"a": result, "clean": answered(squad_scores({"q": ["x"]}, {"q": "x"}))}, {"a": "clean"})
    assert result.clean == "its originals"
    header, (row, _) = table({"a": result, "b": result})
    assert header[2:4] == ["f1", "exact match"]
    assert row[2:4] == ["83.3", "50.0"]


# ---- the command


def test_the_nli_suite_by_the_command(nli_folder, tmp_path, capsys):
    data = tmp_path / "data"
    (data / "mnli").mkdir(parents=True)
    (data / "anli").mkdir()
    text = (nli_folder / "test.jsonl").read_text()
    (data / "mnli/dev_matched.jsonl").write_text(text)
    (data / "anli/test_r1.jsonl").write_text("".join(text.splitlines(keepends=True)[:20]))
    command = ["evaluate", str(nli_folder / "model"), "--suite", "nli", "--data_dir", str(data)]
    command += ["--predictions", str(tmp_path / "p"), "--information", str(nli_folder / "train.jsonl")]
    command += ["--information_limit", "32", "--mi_report", str(tmp_path / "mi.png"), "--output"]
    assert cli.main([*command, str(tmp_path / "r.json")]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert list(results) == ["mnli-m", "anli-r1"]
    row = results["anli-r1"]
    assert row["drop"] == pytest.approx(results["mnli-m"]["accuracy"] - row["accuracy"])
    assert row["low"] <= row["accuracy"] <= row["high"]
    assert row["information_upper"] > 0
    assert "information_lower_others" in row
    assert (tmp_path / "mi.png").read_bytes()[1:4] == b"PNG"
    lines = (tmp_path / "p/anli-r1.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    given = [json.loads(line)["label"] for line in text.splitlines()[:20]]
    assert (
        np.mean([line.split("\t")[1] == label for line, label in zip(lines[1:], given, strict=True)]) == row["accuracy"]
    )
    assert "anli-r1" in capsys.readouterr().out
    assert cli.main([*command[:5], str(data), "--limit", "10", "--output", str(tmp_path / "r.md")]) == 0
    assert "| mnli-m | 10 |" in (tmp_path / "r.md").read_text()


def test_the_qa_suite_by_the_command(squad_tokenizer, tmp_path):
    def write(path, *cases):
        paragraphs = [
            {
                "context": context,
                "qas": [
                    {
                        "id": key,
                        "question": "what is it?",
                        "answers": [{"text": "cat", "answer_start": context.index("cat")}],
                    }
                ],
            }
            for key, context in cases
        ]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))

    write(tmp_path / "squad/dev-v1.1.json", ("a", "the red cat"), ("b", "the cat is old"))
    write(
        tmp_path / "adversarial_squad/sample1k-HCVerifyAll.json",
        ("a", "the red cat"),
        ("a-high", "the red cat . the blue dog"),
        ("a-other", "the red cat . a box"),
    )
    config = BertConfig(
        vocab_size=len(squad_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForQuestionAnswering(config).save_pretrained(tmp_path / "model")
    squad_tokenizer.save_pretrained(tmp_path / "model")
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model").config.architectures
    command = ["evaluate", str(tmp_path / "model"), "--suite", "qa", "--data_dir", str(tmp_path), "--max_length", "20"]
    command += ["--doc_stride", "4", "--predictions", str(tmp_path / "p"), "--output", str(tmp_path / "r.json")]
    command += ["--information", str(tmp_path / "squad/dev-v1.1.json")]
    assert cli.main(command) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert list(results) == ["squad", "addsent"]
    assert results["addsent"]["examples"] == 1
    assert results["addsent"]["drop"] == pytest.approx(results["addsent"]["original_f1"] - results["addsent"]["f1"])
    predictions = json.loads((tmp_path / "p/addsent.json").read_text())
    assert set(predictions) == {"a", "a-high", "a-other"}
    right = {key: ["cat"] for key in predictions}
    assert results["addsent"]["f1"] == pytest.approx(squad_scores(right, predictions).f1 / 100)
    assert set(json.loads((tmp_path / "p/addsent.null_odds.json").read_text())) == set(predictions)
    # By the model alone: no task is named. A question is drawn with all its variants.
    addsent = str(tmp_path / "adversarial_squad/sample1k-HCVerifyAll.json")
    command = ["evaluate", str(tmp_path / "model"), "--data", addsent, "--limit", "1", "--predictions"]
    assert cli.main([*command, str(tmp_path / "q")]) == 0
    (path,) = (tmp_path / "q").glob("*HCVerifyAll.json")
    assert set(json.loads(path.read_text())) == set(predictions)


def test_scores_are_not_lost_with_the_bounds(nli_folder, tmp_path, monkeypatch):
    def fails(*args, **settings):
        raise ValueError("no token of a batch is an anchor")

    monkeypatch.setattr("infobert_fast.cli.evaluation.measure_each", fails)
    command = ["evaluate", str(nli_folder / "model"), "--data", f"t={nli_folder / 'test.jsonl'}", "--limit", "4"]
    with pytest.raises(ValueError, match="no token"):
        cli.main([*command, "--information", str(nli_folder / "train.jsonl"), "--output", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["t"]["examples"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "one.jsonl", "--data_dir", "d"], "`data_dir` was 'd'; it says where a suite's files are"),
        (["--suite", "qa", "--data_dir", "."], "`data_dir` '.' holds no set of the suite 'qa'"),
        (["--data", "one.jsonl", "--limit", "0"], "`limit` was 0"),
        (["--data", "one.jsonl", "--mi_report", "m.png"], "`mi_report` was m.png; name a source to fit the bounds'"),
        (["--data", "one.jsonl", "--task", "sst2"], "no field premise='sentence'"),
        (["--data", "d/one.jsonl", "d_one=one.jsonl", "--predictions", "p"], "would be written to one file, d_one"),
        (["--data", "one.jsonl", "--information", "one.jsonl", "--cl", "1", "--ch", "1"], "needs anchors: part them"),
        (["--data", "pair.tsv", "--task", "wnli"], "the model has 3 labels"),
        *(
            (["--data", "one.jsonl", f"--{name}", "7"], f"`{name}` was 7; it is for questions, and the task is nli")
            for name in ("doc_stride", "n_best", "max_answer_length")
        ),
        (["--data", "one.jsonl", "--null_threshold", "0"], "`null_threshold` was 0.0; it is for questions"),
        (["--data", "one.jsonl", "--cl", "0.4"], "`cl` was 0.4; name a source to fit the bounds' critics on"),
        (["--data", "one.jsonl", "--ch", "0.4"], "`ch` was 0.4; name a source"),
        (["--data", "one.jsonl", "--information_limit", "9"], "`information_limit` was 9; name a source"),
        (["--suite", "qa", "--task", "nli"], "`task` was 'nli' with the suite 'qa', which has a task of its own"),
        (["--data", "one.jsonl", "--model_labels", "e", "n"], "`model_labels` was ['e', 'n']; the model has 3 outputs"),
        (["--data", "pair.tsv", "--task", "rte", "--fever_order", "anli"], "`fever_order` was 'anli'; it is for nli"),
        (["--data", "one.jsonl", "{path: q.jsonl, task: qa}"], "the sets are of the tasks nli, qa; a model answers or"),
        (
            ["--data", "{path: one.jsonl, task: nli2}", "--task", "nli", "--information", "one.jsonl"],
            "the sets are of the tasks nli2, nli; `information` is measured on one",
        ),
        (
            ["--data", "{path: two.jsonl, task: nli2}", "--information", "{path: two.jsonl, task: nli2}"],
            "no output's loss is that of a class",
        ),
        (["--data", "anli-full"], "'anli-full' is a mix to train on"),
        (["--data", "one.jsonl", "--information", "absent.jsonl"], "does not exist"),
        (["--data", "one.jsonl", "--task", "qa"], "is a RobertaForSequenceClassification, and qa needs one ending in"),
    ],
)
def test_refusals(nli_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "neutral"}\n')
    (tmp_path / "two.jsonl").write_text('{"premise": "a", "hypothesis": "b", "label": "entailment"}\n')
    (tmp_path / "q.jsonl").write_text("{}")
    (tmp_path / "pair.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\tentailment\n")
    assert cli.main(["evaluate", str(nli_folder / "model"), *arguments]) == 2
    assert message in capsys.readouterr().err


# ---- what the model's outputs mean


def saved(nli_folder, tmp_path, names):
    """The tiny model under other names of its outputs."""
    shutil.copytree(nli_folder / "model", tmp_path / "named")
    path = tmp_path / "named/config.json"
    config = json.loads(path.read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    path.write_text(json.dumps(config))
    return str(tmp_path / "named")


def accuracies(command, tmp_path):
    assert cli.main([*command, "--output", str(tmp_path / "r.json")]) == 0
    return {name: row["accuracy"] for name, row in json.loads((tmp_path / "r.json").read_text()).items()}


def test_names_that_say_nothing_are_given_by_hand(nli_folder, tmp_path, capsys):
    data = ["--data", f"t={nli_folder / 'test.jsonl'}"]
    right = accuracies(["evaluate", str(nli_folder / "model"), *data], tmp_path)
    model = saved(nli_folder, tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert cli.main(["evaluate", model, *data]) == 2
    assert "name what it does, --task, and --model_labels, what they mean" in capsys.readouterr().err
    (tmp_path / "n.json").write_text("{}")
    nli, words = ["--task", "nli"], ["--neighbors", str(tmp_path / "n.json")]
    for command in (["evaluate", *nli], ["explain"], ["attack", *nli, *words]):
        assert cli.main([command[0], model, *command[1:], *data]) == 2
        assert "are called LABEL_0, LABEL_1, LABEL_2, which says nothing of them" in capsys.readouterr().err
    named = ["--model_labels", "entailment", "neutral", "contradiction"]
    assert accuracies(["evaluate", model, *data, *named], tmp_path) == right
    turned = accuracies(["evaluate", model, *data, "--model_labels", "contradiction", "entailment", "n"], tmp_path)
    assert turned != right


def test_a_set_of_two_classes_beside_one_of_three(nli_folder, tmp_path, capsys):
    lines = (nli_folder / "test.jsonl").read_text()
    for name in ("neutral", "contradiction"):
        lines = lines.replace(f'"label": "{name}"', '"label": "non-entailment"')
    (tmp_path / "hans.jsonl").write_text(lines)
    command = ["evaluate", str(nli_folder / "model"), "--suite", f"t={nli_folder / 'test.jsonl'}"]
    assert cli.main([*command, str(tmp_path / "hans.jsonl")]) == 2
    assert "the task is nli2" in capsys.readouterr().err
    hans = f"{{path: {tmp_path / 'hans.jsonl'}, task: nli2, name: hans}}"
    found = accuracies([*command, hans, "--predictions", str(tmp_path / "p")], tmp_path)
    assert found["hans"] > found["t"]  # neutral for contradiction is no error here
    words = {line.split("\t")[1] for line in (tmp_path / "p/hans.tsv").read_text().splitlines()[1:]}
    assert words == {"not_entailment"}  # as the model answers; its neutral is none of this set's words
    # A mapping says the same of words that no task knows.
    (tmp_path / "own.jsonl").write_text(lines.replace("non-entailment", "no").replace('"entailment"', '"yes"'))
    own = f"{{path: {tmp_path / 'own.jsonl'}, labels: {{yes: entailment, no: not_entailment}}, name: hans}}"
    again = accuracies(["evaluate", str(nli_folder / "model"), "--data", own, "--task", "nli2"], tmp_path)
    assert again == {"hans": found["hans"]}


@pytest.mark.parametrize(
    ("names", "header", "task"),
    [
        (("entailment", "not_entailment"), ("question", "sentence", "label"), "qnli"),
        (("entailment", "not_entailment"), ("sentence1", "sentence2", "label"), None),
        (("entailment", "not_entailment"), ("text", "label"), None),
        (("safe", "unsafe"), ("text", "label"), "safety"),
        (("acceptable", "unacceptable"), ("sentence", "label"), "cola"),
        (("score",), ("sentence1", "sentence2", "score"), "stsb"),
        (("entailment", "neutral", "contradiction"), ("premise", "hypothesis", "label"), "nli"),
        (("yes", "no"), ("text", "label"), None),
    ],
)
def test_the_task_follows_from_the_labels_and_the_columns(tmp_path, names, header, task):
    (tmp_path / "t.tsv").write_text("\t".join(header) + "\n" + "\t".join(["1"] * len(header)) + "\n")
    config = BertConfig(id2label=dict(enumerate(names)), architectures=["BertForSequenceClassification"])
    sources = [Source(str(tmp_path / "t.tsv"))]
    if task is not None:
        assert task_for(config, sources) == task
        return
    with pytest.raises(ValueError, match=r"say which it is, --task (rte|qnli)|are the classes of no task"):
        task_for(config, sources)
    assert task_for(config, [Source("x.tsv", task="rte")]) == "rte"
