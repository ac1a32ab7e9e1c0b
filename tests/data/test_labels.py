"""What raw labels mean: nothing is guessed, nothing is dropped without a word, and words stay words."""

import datasets
import numpy as np
import pytest

from infobert_fast.data.corpora import load, load_nli, stream
from infobert_fast.data.labels import label_table
from infobert_fast.data.mixtures import expand, task_of
from infobert_fast.data.settings import read_yaml
from infobert_fast.data.source import Source
from infobert_fast.data.tasks import GLUE, NLI, NLI2, TASKS
from infobert_fast.data.tokenization import tokenize

PAIR = {"premise": "a cat sleeps", "hypothesis": "an animal sleeps", "label": "entailment"}
TEXTS = {"sentence1": "a", "sentence2": "b"}


def pairs(*labels):
    return [{**PAIR, "premise": str(i), "label": label} for i, label in enumerate(labels)]


# ---- splits


@pytest.mark.parametrize("name", GLUE)
def test_glue_trains_on_train_and_is_evaluated_on_what_is_not(name):
    (training,) = expand([f"glue/{name}"])
    (evaluation,) = expand([f"glue/{name}"], evaluation=True)
    assert (training.path, training.config, training.split) == ("nyu-mll/glue", name, "train")
    assert evaluation.split == ("validation_matched" if name == "mnli" else "validation")
    for asked in (False, True):
        assert expand([f"glue/{name}:test"], evaluation=asked)[0].split == "test"


def test_the_runs_own_sources_are_read_so():
    from infobert_fast.training.run import DataArguments, _evaluation_sources, _training_sources

    given = DataArguments(train_data=["glue/rte"], eval_data=["glue/rte"])
    assert [source.split for source in _training_sources(given, 0)] == ["train"]
    assert [source.split for source in _evaluation_sources(given).values()] == ["validation"]


def test_a_mix_is_for_training():
    with pytest.raises(ValueError, match="'anli-full' is a mix to train on; evaluate on test sets"):
        expand(["anli-full"], evaluation=True)


# ---- unlabelled rows


@pytest.mark.parametrize("again", [False, True])
def test_the_dropped_are_counted_as_a_warning_every_time(jsonl, caplog, again):
    path = jsonl(*pairs("e", "-", "-1", -1.0, "c"))
    for _ in range(1 + again):  # the second comes from the cache
        caplog.clear()
        loaded = load_nli(path)
    assert loaded["premise"][:] == ["0", "4"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "dropped 3 of 5 examples, which are unlabelled" in caplog.text
    caplog.clear()
    assert [row["premise"] for row in stream(path)] == ["0", "4"]
    assert "dropped 3 of 5 examples" in caplog.text


def test_sets_that_drop_the_same_rows_are_told_apart(jsonl, tokenizer):
    """What is made of them has a name of its own in the cache."""
    texts = ["the red box", "the blue cup of ben"]
    rows = [[{**PAIR, "premise": text}, {**PAIR, "label": "-"}] for text in texts]
    loaded = [load_nli(jsonl(*part, name=f"{i}.jsonl")) for i, part in enumerate(rows)]
    assert loaded[0]._fingerprint != loaded[1]._fingerprint
    found = [tokenize(part, tokenizer)["input_ids"][0] for part in loaded]
    assert len(found[0]) != len(found[1])


def test_nothing_is_said_where_nothing_is_dropped(jsonl, caplog):
    load_nli(jsonl(*pairs("e", "n")))
    assert not caplog.records


def test_minus_one_is_a_score(jsonl, caplog):
    path = jsonl(*({**TEXTS, "score": score} for score in (-1.0, 0.5, "-", 1)))
    assert load(path, TASKS["stsb"])["label"][:] == [-1.0, 0.5, 1.0]
    assert "1 labels are -1 and read as numbers; mark unlabelled examples by '-'" in caplog.text
    assert "dropped 1 of 4 examples" in caplog.text
    assert [row["label"] for row in stream(path, TASKS["stsb"])] == [-1.0, 0.5, 1.0]


def test_a_test_set_without_scores_is_refused(jsonl):
    path = jsonl(*({**TEXTS, "score": -1.0} for _ in range(3)))
    for read in (lambda: load(path, TASKS["stsb"]), lambda: list(stream(path, TASKS["stsb"]))):
        with pytest.raises(ValueError, match="none of its 3 examples is labelled"):
            read()


# ---- numbers without names


@pytest.mark.parametrize("name", TASKS)
def test_numbers_are_read_with_a_warning_unless_published_so(jsonl, caplog, name):
    task = TASKS[name]
    path = jsonl(*({**dict.fromkeys(task.texts, "x"), "label": label} for label in (*[-1] * 12, 1)))
    load(path, task)
    said = "integer labels without names, read as {0: " in caplog.text
    assert said == (name not in ("cola", "sst2", "mrpc", "qqp", "wnli", "stsb"))
    assert not said or f"1: '{task.labels[1]}'" in caplog.text


# ---- two classes and three


def test_two_way_entailment(jsonl):
    rows = pairs("entailment", "non-entailment", "not_entailment", "Not entailment")
    assert load(jsonl(*rows), NLI2)["label"][:] == [0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"line 2 has the unknown label 'non-entailment'.*the task is nli2"):
        load_nli(jsonl(*rows))
    merged = {"entailment": "entailment", "neutral": "not_entailment", "contradiction": "not_entailment"}
    assert load({"path": jsonl(*pairs("neutral", "entailment")), "labels": merged}, NLI2)["label"][:] == [1, 0]


def test_two_way_names_of_the_hub_name_the_task(monkeypatch):
    features = datasets.Features({**NLI.features, "label": datasets.ClassLabel(names=["entailment", "non-entailment"])})
    rows = datasets.Dataset.from_dict({"premise": ["p"], "hypothesis": ["h"], "label": [1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(ValueError, match=r"unknown label 1 \(named 'non-entailment'\).*the task is nli2"):
        load_nli("hans:validation")
    assert load("hans:validation", NLI2)["label"][:] == [1]


def test_a_source_says_its_task(jsonl):
    path = jsonl(*pairs("entailment"))
    source = Source.parse({"path": path, "task": "nli2"})
    assert task_of([source]) == "nli2"
    assert load(source, NLI2)["label"][:] == [0]
    with pytest.raises(ValueError, match="is of the task 'nli2' and was to be read as 'nli'"):
        load_nli(source)
    with pytest.raises(ValueError, match="`task` was 'hans'; it must be one of"):
        Source.parse({"path": path, "task": "hans"})


def test_safety_sets(jsonl):
    rows = [{"prompt": "x", "label": label} for label in ("safe", "Unsafe", "toxic", "benign", "jailbreak")]
    assert load(jsonl(*rows), TASKS["safety"])["label"][:] == [0, 1, 1, 0, 1]


# ---- a mapping of labels


def test_yes_and_no_are_words_in_a_mapping_of_labels(jsonl):
    text = "{path: PATH, labels: {yes: entailment, no: contradiction, On: neutral}, seed: 1, repeat: 2}"
    path = jsonl(*pairs("yes", "no", "on"))
    source = Source.parse(text.replace("PATH", path))
    assert source.labels == {"yes": "entailment", "no": "contradiction", "On": "neutral"}
    assert sorted(load_nli(source)["label"]) == [0, 0, 1, 1, 2, 2]
    assert read_yaml("bf16: yes\nlabels: [no, yes]\n") == {"bf16": True, "labels": ["no", "yes"]}
    assert read_yaml("a: {labels: {1: e, true: n}}") == {"a": {"labels": {1: "e", "true": "n"}}}


def test_the_mapping_of_a_training_file(tmp_path, jsonl):
    from infobert_fast.cli.train import parse_training

    path = jsonl(*pairs("yes", "no"))
    (tmp_path / "c.yaml").write_text(
        f"output_dir: {tmp_path}\ntrain_data:\n  - {{path: {path}, labels: {{yes: entailment, no: neutral}}}}\n"
    )
    _, given, _ = parse_training([str(tmp_path / "c.yaml")])
    assert load_nli(given.train_data[0])["label"][:] == [0, 1]


def test_booleans_of_another_yaml_reader_are_named(jsonl):
    path = jsonl(*pairs("yes", "no"))
    with pytest.raises(ValueError, match=r"'yes'.*YAML takes yes and no, on and off without quotes for True and False"):
        load_nli({"path": path, "labels": {True: "entailment", False: "neutral"}})
    booleans = jsonl(*pairs(True, False), name="booleans.jsonl")
    assert load_nli({"path": booleans, "labels": {True: "entailment", False: "neutral"}})["label"][:] == [0, 1]
    with pytest.raises(ValueError, match="unknown label True"):
        load_nli(booleans)


def test_a_broken_mapping_as_text():
    with pytest.raises(ValueError, match="is no mapping as YAML writes one"):
        Source.parse("{path: a.jsonl, labels: {")
    with pytest.raises(ValueError, match=r"unknown keys \['lables'\]"):
        Source.parse("{path: a.jsonl, lables: {yes: entailment}}")


def test_one_raw_label_is_one_class():
    with pytest.raises(ValueError, match="labels maps 'yes' twice, to two classes"):
        label_table({"Yes": "entailment", "yes": "neutral"}, None)
    assert label_table({"Yes": "entailment", "yes": "e"}, None) == {"yes": 0}


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [("sst2", "hypothesis", "text2"), ("stsb", "labels", {"1": "entailment"})],
)
def test_fields_without_an_effect_are_refused(jsonl, task, key, value):
    with pytest.raises(ValueError, match=f"has {key}=.*leave it out"):
        load({"path": jsonl({**TEXTS, "sentence": "x", "label": 1}), key: value}, TASKS[task])


# ---- what a file lacks


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        (TEXTS, "nli", "has no label: beside 'sentence1' and 'sentence2' no field 'gold_label' or 'label'"),
        ({"context": "a", "hypothesis": "b", "uid": 1}, "nli", "beside 'context' and 'hypothesis' no field 'label'"),
        ({"sentence": "a", "stars": 1}, "sst2", r"no field 'label'; it has .*'stars'\]: name .*label='stars'"),
        ({"sentence1": "a", "label": 1}, "rte", "has no field hypothesis='sentence2'"),
        ({"data": [], "version": "1.1"}, "nli", "no field premise='premise'"),
    ],
)
def test_what_is_missing_is_named(jsonl, row, task, message):
    with pytest.raises(ValueError, match=message):
        load(jsonl(row), TASKS[task])


def test_squads_document_as_pairs(tmp_path):
    (tmp_path / "dev.json").write_text('{"version": "1.1", "data": []}')
    with pytest.raises(ValueError, match="for SQuAD's the task qa"):
        load_nli(str(tmp_path / "dev.json"))


def test_the_dropped_shift_no_label(jsonl):
    """Of many, in any order, with what follows: a limit, a shuffle, a repeat."""
    random = np.random.default_rng(0)
    words = [("e", "n", "c", "-")[i] for i in random.integers(0, 4, 200)]
    loaded = load_nli({"path": jsonl(*pairs(*words)), "seed": 3, "limit": 90, "repeat": 2})
    assert len(loaded) == 180
    assert all("enc"[row["label"]] == words[int(row["premise"])] for row in loaded)
