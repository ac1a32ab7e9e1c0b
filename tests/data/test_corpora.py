import gzip
import json
import logging
import subprocess
import sys

import datasets
import pytest

from infobert_fast.data.corpora import FEATURES, LABELS, Source, concatenate, load_many, load_nli

PAIR = {"premise": "a cat sleeps", "hypothesis": "an animal sleeps", "label": "entailment"}
ROWS = [PAIR, {**PAIR, "hypothesis": '"black, it is', "label": "neutral"}, {**PAIR, "label": "contradiction"}]


def text_of(ending):
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS)
    if ending == ".json":
        return json.dumps(ROWS, indent=1)
    if ending == ".tsv":
        return "\n".join("\t".join(row) for row in [list(PAIR), *(list(row.values()) for row in ROWS)]) + "\n"
    cells = [list(PAIR), *(list(row.values()) for row in ROWS)]
    return "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells) + "\n"


def hub(monkeypatch, answer):
    """Let the hub answer with a dataset, or with what ``answer`` is; return the calls it gets."""
    calls = []

    def load_dataset(path, config=None, split=None):
        calls.append((path, config, split))
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def classified(names, labels):
    columns = {"premise": ["p"] * len(labels), "hypothesis": [str(i) for i in range(len(labels))], "label": labels}
    features = datasets.Features({**FEATURES, "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".tsv", ".csv"])
def test_every_kind_of_file_gives_the_same_dataset(tmp_path, ending, zipped):
    path = tmp_path / f"dev{ending}{'.gz' if zipped else ''}"
    with (gzip.open if zipped else open)(path, "wt") as file:
        file.write(text_of(ending))
    dataset = load_nli(str(path))
    assert dataset.features == FEATURES
    assert dataset.features["label"].names == list(LABELS)
    assert dataset.to_list() == [{**row, "label": index} for index, row in enumerate(ROWS)]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_list_nested_in_a_document(tmp_path, zipped):
    path = tmp_path / f"dev.json{'.gz' if zipped else ''}"
    with (gzip.open if zipped else open)(path, "wt") as file:
        json.dump({"mnli": ROWS, "qqp": [{"question": "?"}]}, file)
    assert load_nli(f"{path}#mnli")["label"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"has no field='rte'; it has \['mnli', 'qqp'\]"):
        load_nli(f"{path}#rte")
    with pytest.raises(ValueError, match=r"no field premise='premise'; it has \['mnli', 'qqp'\].*set field"):
        load_nli(str(path))


def test_text_in_tables_stays_text(tmp_path):
    path = tmp_path / "dev.csv"
    path.write_text("premise,hypothesis,label\nnull,007,0\nNA,1.0,2\n")
    assert load_nli(str(path)).to_list() == [
        {"premise": "null", "hypothesis": "007", "label": 0},
        {"premise": "NA", "hypothesis": "1.0", "label": 2},
    ]


def test_cells_beyond_the_header_shift_no_column(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text("premise\thypothesis\tlabel\na cat\tan animal\te\tworker 7\n")
    assert load_nli(str(path)).to_list() == [{"premise": "a cat", "hypothesis": "an animal", "label": 0}]
    path.write_text("premise\thypothesis\tlabel\na cat\tan animal\te\na cat\tan animal\n")
    with pytest.raises(ValueError, match=r"line 3 has no field 'label'; it has \['premise', 'hypothesis'\]"):
        load_nli(str(path))


def test_fever_like_columns_and_words(jsonl):
    path = jsonl(
        {"claim": "c1", "evidence": "e1", "verdict": "SUPPORTS"},
        {"claim": "c2", "evidence": "e2", "verdict": "REFUTES"},
        {"claim": "c3", "evidence": "e3", "verdict": "NOT ENOUGH INFO"},
    )
    dataset = load_nli({"path": path, "premise": "evidence", "hypothesis": "claim", "label": "verdict"})
    assert dataset.to_list()[1] == {"premise": "e2", "hypothesis": "c2", "label": 2}
    assert dataset["label"][:] == [0, 2, 1]


@pytest.mark.parametrize(
    ("raw", "labels", "expected"),
    [
        (["entail", "contradict", "Neutral "], None, [0, 2, 1]),
        (["e", "n", "c"], None, [0, 1, 2]),
        ([0, 1, 2], None, [0, 1, 2]),
        ([0, 1, 2], ["contradiction", "entailment", "neutral"], [2, 0, 1]),
        ([5, 6, 5], {5: "contradiction", 6: "entailment"}, [2, 0, 2]),
        (["yes", "no", "-"], {"Yes": "entailment", "no": "neutral", "-": "contradiction"}, [0, 1, 2]),
    ],
)
def test_labels_of_files(jsonl, raw, labels, expected):
    path = jsonl(*({**PAIR, "label": label} for label in raw))
    assert load_nli({"path": path, "labels": labels})["label"][:] == expected


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["contradiction", "entailment", "neutral"], None, [2, 0, 1]),
        (["REFUTES", "SUPPORTS", "NOT ENOUGH INFO"], None, [2, 0, 1]),
        (["no", "yes", "open"], {"no": "contradiction", "yes": "entailment", "open": "neutral"}, [2, 0, 1]),
        (["no", "yes", "open"], ["contradiction", "entailment", "neutral"], [2, 0, 1]),
        (["entailment", "neutral", "contradiction"], ["contradiction", "neutral", "entailment"], [2, 1, 0]),
    ],
)
def test_labels_of_the_hub_are_taken_by_name(monkeypatch, names, labels, expected):
    calls = hub(monkeypatch, classified(names, [0, 1, 2]))
    dataset = load_nli(Source("facebook/anli", config="plain", split="test_r1", labels=labels))
    assert calls == [("facebook/anli", "plain", "test_r1")]
    assert dataset["label"][:] == expected


def test_names_that_say_nothing_are_not_guessed(monkeypatch):
    hub(monkeypatch, classified(["no", "yes", "open"], [1]))
    with pytest.raises(ValueError, match=r"example 1 has the unknown label 1 \(named 'yes'\) in 'label'.*set labels"):
        load_nli("snli:test")


def test_integers_without_names_are_read_with_a_warning(jsonl, caplog):
    path = jsonl({**PAIR, "label": 2})
    load_nli({"path": path, "labels": LABELS})
    assert not caplog.records
    load_nli(path)
    assert "integer labels without names" in caplog.text


@pytest.mark.parametrize("mark", ["-", -1])
def test_unlabelled_examples_are_dropped_and_counted(jsonl, caplog, mark):
    labels = ["entailment", "-", "-", "neutral"] if mark == "-" else [0, -1, -1, 1]
    with caplog.at_level(logging.INFO, "infobert_fast"):
        dataset = load_nli(jsonl(*({**PAIR, "label": label} for label in labels)))
    assert dataset["label"][:] == [0, 1]
    assert "dropped 2 of 4 examples" in caplog.text


def test_limit_counts_labelled_examples_and_seed_shuffles(jsonl):
    path = jsonl(*({**PAIR, "premise": str(i), "label": "-" if i < 3 else "neutral"} for i in range(30)))
    assert load_nli({"path": path, "limit": 4})["premise"][:] == ["3", "4", "5", "6"]
    shuffled = load_nli({"path": path, "limit": 4, "seed": 0})["premise"][:]
    assert shuffled == load_nli({"path": path, "limit": 4, "seed": 0})["premise"][:]
    assert len(set(shuffled) - {"3", "4", "5", "6"}) > 0
    assert shuffled != load_nli({"path": path, "limit": 4, "seed": 2})["premise"][:]
    assert len(load_nli({"path": path, "limit": 99})) == 27
    assert load_nli({"path": path, "limit": 2, "repeat": 3})["premise"][:] == ["3", "4"] * 3


def test_splits_of_the_hub(monkeypatch):
    part = classified(LABELS, [0])
    hub(monkeypatch, datasets.DatasetDict(train=part, test=part))
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\]; choose one, as in snli:train"):
        load_nli("snli")
    hub(monkeypatch, datasets.DatasetDict(test=part))
    assert len(load_nli("snli")) == 1


def test_a_folder_is_a_dataset_and_its_unknown_split_lists_the_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(text_of(".jsonl"))
    assert load_nli(f"{tmp_path}:test")["label"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"split='dev'.* failed: Unknown split .dev.*'train'.*'test'"):
        load_nli(f"{tmp_path}:dev")


def test_neither_file_nor_dataset(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"'snil:test' \(snil\) is no file ending in .jsonl.* failed: no network"):
        load_nli("snil:test")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope.jsonl\) does not exist; path is relative to"):
        load_nli(str(tmp_path / "nope.jsonl"))


def test_unsupported_ending(tmp_path):
    (tmp_path / "dev.txt").write_text("x")
    with pytest.raises(ValueError, match=r"unsupported ending; allowed are .jsonl, .jsonl.gz, .json, .*convert"):
        load_nli(str(tmp_path / "dev.txt"))


def test_missing_field_lists_those_there_are(jsonl):
    with pytest.raises(ValueError, match=r"no field hypothesis='claim'; it has \['premise', 'hypothesis', 'label'\]$"):
        load_nli({"path": jsonl(PAIR), "hypothesis": "claim"})


@pytest.mark.parametrize(
    ("labels", "mapping", "message"),
    [
        (["neutral", "maybe"], None, "line 2 has the unknown label 'maybe' in 'label'; known are .*'entailment'"),
        ([0, 3], None, "line 2 has the unknown label 3 in 'label'; known are .*set labels to map it to entailment"),
        (["neutral", None], None, "line 2 has the unknown label None"),
        (["yes", "neutral"], {"yes": "entailment"}, r"line 2 has the unknown label 'neutral'.*known are \['yes'\]"),
    ],
)
def test_unknown_label(jsonl, labels, mapping, message):
    path = jsonl(*({**PAIR, "label": label} for label in labels))
    with pytest.raises(ValueError, match=message):
        load_nli({"path": path, "labels": mapping})


def test_a_sentence_that_is_no_text(jsonl):
    with pytest.raises(ValueError, match="line 2 has hypothesis None, which is no text"):
        load_nli(jsonl(PAIR, {**PAIR, "hypothesis": None}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.jsonl", ""),
        ("e.json", "[]"),
        ("e.json#x", '{"x": []}'),
        ("e.csv", ""),
        ("e.csv", "premise,hypothesis,label\n"),
        ("e.jsonl", json.dumps({**PAIR, "label": "-"})),
    ],
)
def test_empty_dataset(tmp_path, name, content):
    (tmp_path / name.partition("#")[0]).write_text(content)
    with pytest.raises(ValueError, match=r"is empty|No columns to parse"):
        load_nli(str(tmp_path / name))


@pytest.mark.parametrize("content", ['{"premise": \n', "not json"])
def test_a_broken_file(tmp_path, content):
    (tmp_path / "dev.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"line 1, column \d+ is no JSON: .*; correct the file"):
        load_nli(str(tmp_path / "dev.jsonl"))


def test_load_many_names_its_datasets(jsonl):
    path = jsonl(PAIR)
    loaded = load_many([path, f"again={path}"])
    assert list(loaded) == [f"{path.split('/')[-2]}/dev", "again"]
    with pytest.raises(ValueError, match="are both named 'x'; give one another name, as in other="):
        load_many([f"x={path}", f"x={path}"])


def test_concatenate_keeps_the_order_and_has_a_stable_fingerprint(jsonl):
    one, two = jsonl(*ROWS, name="one.jsonl"), jsonl(PAIR, name="two.jsonl")
    joined = concatenate([{"path": two, "repeat": 2}, one])
    assert joined["label"][:] == [0, 0, 0, 1, 2]
    assert joined.features == FEATURES
    assert joined._fingerprint == concatenate([{"path": two, "repeat": 2}, one])._fingerprint
    with pytest.raises(ValueError, match="sources is empty; give at least one"):
        concatenate([])


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("advglue/dev.json#mnli", 121),
        ("cad_nli/original_test.jsonl", 400),
        ("cad_nli/revised_premise_test.jsonl", 800),
        ("cad_nli/revised_hypothesis_test.jsonl", 800),
        ("anli/dev_r1.jsonl", 1000),
        ("anli/dev_r2.jsonl", 1000),
        ("anli/dev_r3.jsonl", 1198),
        ("anli/test_r1.jsonl", 1000),
        ("anli/test_r2.jsonl", 1000),
        ("anli/test_r3.jsonl", 1200),
        ("snli/train_sub20k.jsonl", 19999),
        ("snli/dev.jsonl", 9842),
        ("snli/test.jsonl", 9824),
        ("mnli/train_sub12k.jsonl", 12811),
        ("mnli/dev_matched.jsonl", 9815),
    ],
)
def test_real_nli(real_data, source, count):
    path, _, field = source.partition("#")
    dataset = load_nli({"path": real_data(path), "field": field or None, "labels": LABELS if field else None})
    assert len(dataset) == count
    assert set(dataset["label"]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("file", "evidence", "count"),
    [
        ("v0.1_full", "evidence_sentence", 956),
        ("v0.1_generated", "evidence_sentence", 717),
        ("v0.2_dev", "evidence", 708),
        ("v0.2_test", "evidence", 712),
    ],
)
def test_real_fever_symmetric(real_data, file, evidence, count):
    path = real_data(f"fever_symmetric/{file}.jsonl")
    dataset = load_nli({"path": path, "premise": evidence, "hypothesis": "claim"})
    assert len(dataset) == count
    assert set(dataset["label"]) == {0, 2}


def test_the_package_itself_stays_light():
    code = "import sys, infobert_fast.data; print({'datasets', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
