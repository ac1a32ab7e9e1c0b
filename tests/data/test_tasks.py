"""The layouts that people's files have, GLUE's tasks, and the published mixes."""

import copy
import json

import datasets
import pytest

from infobert_fast.data import cache
from infobert_fast.data.corpora import load, load_nli, stream
from infobert_fast.data.mixtures import expand, task_of
from infobert_fast.data.source import Source
from infobert_fast.data.tasks import NLI, TASKS, task_named
from infobert_fast.data.tokenization import tokenize

ONE = {"premise": "p", "hypothesis": "h"}


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"uid": "1", "context": "p", "hypothesis": "h", "label": "c", "model_label": "n", "reason": ""}, 2),  # ANLI
        ({"cid": 1, "fid": "1", "query": "p", "context": "h", "verifiable": 1, "label": "SUPPORTS"}, 0),  # FEVER-NLI
        ({"id": 1, "claim": "p", "evidence": "h", "label": "NOT ENOUGH INFO"}, 1),
        ({"id": 1, "claim": "p", "evidence_sentence": "h", "label": "REFUTES"}, 2),  # FEVER-Symmetric 0.1
        (
            {"claim": "p", "evidence": "h", "sentence1": "h", "sentence2": "p", "gold_label": "x", "label": "REFUTES"},
            2,
        ),
        ({"gold_label": "neutral", "sentence1": "p", "sentence2": "h", "pairID": "x", "genre": "y"}, 1),  # SNLI, MNLI
        ({"orig_preimise": "p", "orig_hypothesis": "?", "adv_hypothesis": "h", "true_label": "entailment"}, 0),
        ({"orig_premise": "p", "adv_hypothesis": "h", "true_label": 2, "new_label": 0}, 2),
    ],
)
def test_the_layouts_of_published_files(jsonl, row, label):
    assert load_nli(jsonl(row)).to_list() == [{**ONE, "label": label}]


@pytest.mark.parametrize(
    "row",
    [
        {"claim": "c", "evidence": "e", "label": "SUPPORTS"},
        {"claim": "c", "evidence_sentence": "e", "label": "SUPPORTS"},
        {"query": "c", "context": "e", "label": "SUPPORTS"},
    ],
)
def test_the_order_of_fever(jsonl, row):
    path = jsonl(row)
    assert load_nli(path)[0] == {"premise": "c", "hypothesis": "e", "label": 0}
    assert load_nli({"path": path, "fever_order": "anli"})[0] == {"premise": "e", "hypothesis": "c", "label": 0}
    (source,) = expand([path], fever_order="anli")
    assert load_nli(source)[0]["premise"] == "e"
    (source,) = expand([{"path": path, "fever_order": "reference"}], fever_order="anli")
    assert load_nli(source)[0]["premise"] == "c"


def test_glues_mnli_table(tmp_path):
    names = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    header = [*names.split(), "sentence1", "sentence2", "label1", "gold_label"]
    path = tmp_path / "train.tsv"
    cells = [*"01234567", 'He said "no', "h", "neutral", "contradiction"]
    path.write_text("\t".join(header) + "\n" + "\t".join(cells) + "\n")
    assert load_nli(str(path)).to_list() == [{"premise": 'He said "no', "hypothesis": "h", "label": 2}]


GLUE_FILES = {
    "cola": "gj04\t1\t\tOur friends won.\ngj04\t0\t*\tHim won.\n",
    "sst2": "sentence\tlabel\nfine film\t1\nbad film\t0\n",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t7\t8\ta\tc\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n1\t1\t2\ta\tc\t0\n",
    "stsb": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t5.000\n1\tx\ta\tc\t0.250\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n1\ta\tc\tentailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n1\ta\tc\tentailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\ta\tc\t0\n",
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glues_tables(tmp_path, tokenizer, name):
    path = tmp_path / "train.tsv"
    path.write_text(GLUE_FILES[name], encoding="utf-8")
    task = TASKS[name]
    loaded = load(str(path), task)
    assert loaded.features == task.features
    assert loaded["label"][:] == ([5.0, 0.25] if name == "stsb" else [1, 0])
    assert loaded[0][task.texts[0]] == {"cola": "Our friends won.", "sst2": "fine film"}.get(name, "a")
    assert [row[task.texts[-1]] for row in loaded][1] in ("Him won.", "bad film", "c")
    tokens = tokenize(loaded, tokenizer, task=task)
    assert tokens["labels"][:] == loaded["label"][:]
    assert set(tokens.column_names) == {"input_ids", "labels", "length"}


@pytest.mark.parametrize(
    ("part", "name", "count"), [("sst2", "sst2", 148), ("qqp", "qqp", 78), ("qnli", "qnli", 148), ("rte", "rte", 81)]
)
def test_adversarial_glue(real_data, part, name, count):
    assert len(load(f"{real_data('advglue/dev.json')}#{part}", TASKS[name])) == count


def test_classes_of_the_hub_are_taken_by_name(monkeypatch):
    features = datasets.Features(
        {**TASKS["rte"].features, "label": datasets.ClassLabel(names=["not_entailment", "entailment"])}
    )
    rows = datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert load("nyu-mll/glue:validation", TASKS["rte"])["label"][:] == [1]


def test_unknown_tasks():
    with pytest.raises(ValueError, match=r"`task` was 'sst-2'; it must be one of nli, cola, .*wnli, .*safety, qa"):
        task_named("sst-2")


# ---- mixes


def test_published_mixes_name_the_hub():
    full = expand(["anli-full"])
    assert [(source.path, source.split) for source in full] == [
        ("stanfordnlp/snli", "train"),
        ("pietrolesci/nli_fever", "train"),
        ("nyu-mll/multi_nli", "train"),
        ("facebook/anli", "train_r1"),
        ("facebook/anli", "train_r2"),
        ("facebook/anli", "train_r3"),
    ]
    assert [source.repeat for source in full] == [1] * 6
    assert [source.path for source in expand(["anli-part", "my.jsonl"])] == [
        "stanfordnlp/snli",
        "nyu-mll/multi_nli",
        "my.jsonl",
    ]


def test_options_of_the_mixes():
    full = expand(["anli-full"], fever_order="anli", anli_repeat=[10, 20, 10])
    assert [source.repeat for source in full] == [1, 1, 1, 10, 20, 10]
    # The hub's FEVER has the claim as premise: the ANLI authors' order exchanges the two.
    assert (full[1].premise, full[1].hypothesis) == ("hypothesis", "premise")
    assert full[0].premise is None
    with pytest.raises(ValueError, match=r"`anli_repeat` was \[10, 20\]; give three whole numbers"):
        expand(["anli-full"], anli_repeat=[10, 20])
    with pytest.raises(ValueError, match=r"`anli_repeat` was \[1, 0, 1\]"):
        expand([], anli_repeat=[1, 0, 1])


def test_a_mix_from_a_folder(tmp_path):
    def write(path, **row):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(row) + "\n")

    write("snli_1.0/snli_1.0_train.jsonl", sentence1="p", sentence2="s", gold_label="neutral")
    write("nli_fever/train_fitems.jsonl", query="c", context="e", label="SUPPORTS")
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI/train.tsv").write_text("sentence1\tsentence2\tgold_label\np\tm\tneutral\n")
    for number in (1, 2, 3):
        write(f"anli_v1.0/R{number}/train.jsonl", context="p", hypothesis=f"r{number}", label="e")
    sources = expand(["anli-full"], data_dir=str(tmp_path), fever_order="anli", anli_repeat=(2, 1, 3))
    hypotheses = [text for source in sources for text in load_nli(source)["hypothesis"]]
    assert hypotheses == ["s", "c", "m", "r1", "r1", "r2", "r3", "r3", "r3"]
    (tmp_path / "MNLI/train.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the corpus 'mnli' of 'anli-part'; it may be any of mnli/train"):
        expand(["anli-part"], data_dir=str(tmp_path))


def test_tasks_by_the_sources_names():
    assert task_of(["glue/sst2:train"]) == "sst2"
    assert task_of([{"path": "nyu-mll/glue", "config": "rte"}]) == "rte"
    assert task_of(["rajpurkar/squad_v2:train"]) == "qa"
    assert task_of(["anli-full"]) == task_of(["glue/nli.jsonl"]) == "nli"
    (source,) = expand(["glue/mnli"], evaluation=True)
    assert (source.path, source.config, source.split) == ("nyu-mll/glue", "mnli", "validation_matched")
    (source,) = expand(["dev=glue/sst2:test"])
    assert (source.name, source.split) == ("dev", "test")
    assert expand(["glue/dev.jsonl"]) == [Source("glue/dev.jsonl")]


# ---- streams and the cache


def test_a_stream_gives_what_loading_gives(jsonl, tokenizer):
    rows = [{"premise": f"the box {i}", "hypothesis": "box", "label": ["e", "-", "c"][i % 3]} for i in range(30)]
    path = jsonl(*rows)
    streamed = stream(path)
    assert isinstance(streamed, datasets.IterableDataset)
    assert list(streamed) == load_nli(path).to_list()
    assert list(stream({"path": path, "limit": 3, "repeat": 2})) == load_nli(path).to_list()[:3] * 2
    few = stream({"path": path, "limit": 3, "seed": 1})
    for epoch in range(3):
        few.set_epoch(epoch)
        assert sorted(row["premise"] for row in few) == sorted(row["premise"] for row in load_nli(path).to_list()[:3])
    shuffled = list(stream({"path": path, "seed": 1}))
    assert shuffled != load_nli(path).to_list()
    assert sorted(map(str, shuffled)) == sorted(map(str, load_nli(path)))
    assert list(tokenize(streamed, tokenizer)) == tokenize(load_nli(path), tokenizer).to_list()


def test_the_cache_tells_apart_what_differs(jsonl, tokenizer, monkeypatch):
    path = jsonl({"premise": "the box", "hypothesis": "box", "label": "e"})
    loaded = load_nli(path)
    first = tokenize(loaded, tokenizer)
    assert tokenize(loaded, tokenizer)._fingerprint == first._fingerprint
    assert tokenize(loaded, tokenizer, max_length=64)._fingerprint != first._fingerprint
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["cat"])
    assert tokenize(loaded, other)._fingerprint != first._fingerprint
    other = copy.deepcopy(tokenizer)
    other.truncation_side = "left"
    assert tokenize(loaded, other)._fingerprint != first._fingerprint
    # The same code under another version of it: nothing stale is served.
    monkeypatch.setattr(cache, "_code", lambda: ["another"])
    assert load_nli(path)._fingerprint != loaded._fingerprint
    assert tokenize(loaded, tokenizer)._fingerprint != first._fingerprint


def test_every_task_has_a_layout_of_its_columns():
    for task in TASKS.values():
        assert all(len(layout) == len(task.texts) + 1 for layout in task.layouts)
        assert task.words or task.name == "stsb"
        assert set(task.columns("anli")) >= {task.layouts[0]}
    assert NLI.columns("reference") == NLI.layouts
