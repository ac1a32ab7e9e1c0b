"""The folder in which a reader of the documentation types: what a page names lies in it, tiny and of its kind.

The hub's names are folders in it, and `transformers` and `datasets` look for a folder before they ask a hub: what the
pages print runs as it is printed, without a network.
"""

import json
import shutil
from itertools import chain
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import transformers
import yaml

from infobert_fast.data.demo import demo_corpus, demo_tokenizer
from infobert_fast.data.labels import LABELS
from infobert_fast.data.mixtures import CORPORA
from infobert_fast.data.source import Source
from infobert_fast.evaluation.suite import SUITES

ROOT = Path(__file__).resolve().parents[2]

# Models, by the head that they are published or saved with.
MODELS = {
    **dict.fromkeys(("MODEL", "out"), "RobertaForSequenceClassification"),
    "QA_MODEL": "RobertaForQuestionAnswering",
    **dict.fromkeys(("ENCODER", "M", "sentence-transformers/all-MiniLM-L6-v2"), "BertModel"),
    "FacebookAI/roberta-large": "RobertaForMaskedLM",
}
# Files of labelled pairs, and the folders of a suite's files.
PAIRS = ("my.jsonl", "hard.tsv", "dev.jsonl", "a.jsonl", "clean.jsonl", "adversarial.jsonl", "train.jsonl")
FOLDERS = ("DATA", "FOLDER")
# What benchmarks/robustness.sh reads beside them.
PAIRS += ("DATA/snli/train_sub20k.jsonl", "DATA/snli/test.jsonl", "DATA/mnli/train_sub12k.jsonl")
PAIRS += ("DATA/mnli/dev_matched.jsonl", *(f"DATA/anli/test_r{n}.jsonl" for n in (1, 2, 3)), "DATA/advglue/dev.json")
PAIRS += tuple(f"DATA/cad_nli/{name}.jsonl" for name in ("original_dev", "original_test"))
PAIRS += tuple(f"DATA/cad_nli/revised_{name}_test.jsonl" for name in ("hypothesis", "premise"))
PAIRS += ("DATA/textfooler_targets/snli.jsonl", "DATA/textfooler_targets/mnli_matched.jsonl")
# A guard classifier, and the encoder that it is made from; what they read is below.
GUARDS = {"GUARD": "ModernBertForSequenceClassification", "answerdotai/ModernBERT-base": "ModernBertForMaskedLM"}
# What `infobert attack` wrote, to train on.
ATTACKED = ("attacked/dev.jsonl",)
# Pairs that are entailed or not, by name and by words of its own.
TWO_WAY = {"two.jsonl": ("entailment", "not_entailment"), "own.jsonl": ("yes", "no")}
SAFETY = ("prompts.jsonl", "safety/train.jsonl", "safety/dev.jsonl")
QUESTION_FILES = ("DATA/squad/train-v1.1.partial.json",)
NEIGHBORS = ("neighbors.json", "DATA/synonyms/counterfitted_neighbors.json")
# Datasets of the hub: those of the package's mixes and suites, and these.
HUB = [
    *(source for source, _ in CORPORA.values()),
    *(member.hub for member in chain(*SUITES.values()) if member.hub is not None),
    Source("rajpurkar/squad", split="train"),
    *(Source("nyu-mll/glue", config="sst2", split=split) for split in ("train", "validation")),
]
CONTEXT = "the red box of anna is in the park . the blue cup of ben is made of glass ."
QUESTIONS = [
    {"id": "one", "question": "what is in the park", "context": CONTEXT, "answer": "the red box"},
    {"id": "two", "question": "of what is the cup made", "context": CONTEXT, "answer": "glass"},
    {"id": "two-high-conf", "question": "of what is the cup made", "context": f"{CONTEXT} so it is", "answer": "glass"},
]
SUITE = """
import pytest
import torch

IMPLEMENTATIONS = {"ours": lambda x: x.square().sum()}


def test_it(measure, gate, implementation, function):
    x = torch.ones(8, requires_grad=True)
    gate(implementation, lambda: torch.testing.assert_close(torch.autograd.grad(function(x), x)[0], 2 * x.detach()))
    measure(lambda: function(x).backward())
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_models(folder, tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "type_vocab_size": 2}
    names = dict(enumerate(LABELS))
    for name, head in MODELS.items():
        kind = getattr(transformers, head)
        labels = {"id2label": names, "label2id": {word: i for i, word in names.items()}} if "Sequence" in head else {}
        kind(kind.config_class(**sizes, **labels, pad_token_id=tokenizer.pad_token_id)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, head in GUARDS.items():
        labels = {"id2label": {0: "safe", 1: "unsafe"}, "label2id": {"safe": 0, "unsafe": 1}}
        config = transformers.ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **(labels if "Sequence" in head else {}),
        )
        getattr(transformers, head)(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_files(folder, pairs):
    """Pairs with words for labels, in the form that a name's ending says; questions as SQuAD has them."""
    rows = [{**row, "label": LABELS[row["label"]]} for row in pairs]
    forms = {
        ".jsonl": json_lines(rows),
        ".tsv": "".join("\t".join(line) + "\n" for line in (rows[0], *(row.values() for row in rows))),
        ".json": json.dumps({"mnli": rows, "mnli-mm": rows}),
    }
    qas = [{**row, "answers": answers(row)} for row in QUESTIONS]
    squad = json.dumps({"data": [{"paragraphs": [{"context": qa["context"], "qas": [qa]} for qa in qas]}]})
    for name in PAIRS:
        write(folder / name, forms[Path(name).suffix])
    for name in SAFETY:
        lines = [{"text": row["premise"], "label": ("safe", "unsafe")[i % 2]} for i, row in enumerate(rows)]
        write(folder / name, json_lines(lines))
    for name in ATTACKED:
        lines = [
            {"orig_preimise": row["premise"], "adv_hypothesis": row["hypothesis"], "true_label": row["label"]}
            for row in rows
        ]
        write(folder / name, json_lines(lines))
    for name, (entailed, other) in TWO_WAY.items():
        two = [{**row, "label": entailed if row["label"] == LABELS[0] else other} for row in rows]
        write(folder / name, json_lines(two))
    for data in FOLDERS:
        for member in SUITES["nli"]:
            ending = ".json" if member.field else ".jsonl"
            write(folder / data / (member.files[0] + ending), forms[ending])
        for member in SUITES["qa"]:
            write(folder / data / f"{member.files[0]}.json", squad)
    for name in QUESTION_FILES:
        write(folder / name, squad)
    words = sorted({word for row in rows for word in row["hypothesis"].split()})
    for name in NEIGHBORS:
        write(folder / name, json.dumps(dict.fromkeys(words, words[:3])))


def answers(row):
    return [{"text": row["answer"], "answer_start": row["context"].index(row["answer"])}]


def write_hub(folder, pairs):
    """Each dataset as a folder of parquet files, whose README names configurations and splits as the hub's do."""
    questions = [{**row, "answers": {key: [value] for key, value in answers(row)[0].items()}} for row in QUESTIONS]
    sentiment = datasets.ClassLabel(names=["negative", "positive"])
    sentences = datasets.Dataset.from_dict(
        {"sentence": pairs["hypothesis"], "label": [label % 2 for label in pairs["label"]]},
        features=datasets.Features(sentence=datasets.Value("string"), label=sentiment),
    )
    for path in {source.path for source in HUB}:
        configurations = {}
        rows = sentences if "glue" in path.split("/") else pairs
        rows = datasets.Dataset.from_list(questions) if "squad" in path else rows
        for source in (source for source in HUB if source.path == path):
            file = f"{source.config or 'default'}/{source.split}.parquet"
            (folder / path / file).parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(folder / path / file)
            splits = configurations.setdefault(source.config or "default", {})
            splits[source.split] = {"split": source.split, "path": file}
        configs = [{"config_name": name, "data_files": [*splits.values()]} for name, splits in configurations.items()]
        write(folder / path / "README.md", f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def write_clone(folder):
    """What a clone of the repository has: the example, and benchmarks whose suites take no time; and their results."""
    for name in ("examples/nli.yaml", "examples/guard.yaml"):
        write(folder / name, (ROOT / name).read_text(encoding="utf-8"))
    shutil.copy(folder / "examples/nli.yaml", folder / "CONFIG.yaml")
    for suite in ("info_nce", "step"):
        write(folder / f"benchmarks/suites/bench_{suite}.py", SUITE)
    write(folder / "my_module.py", "def my_function(x):\n    return (x * x).sum()\n")
    for name in ("old.json", "new.json", "mine.json"):
        shutil.copy(ROOT / "benchmarks/results/cpu/bench.json", folder / name)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    corpus = demo_corpus(size=24, eval_size=12)
    transformers.set_seed(0)
    write_models(folder, demo_tokenizer(corpus))
    write_files(folder, corpus["train"])
    write_hub(folder, corpus["train"])
    write_clone(folder)
    return folder


@pytest.fixture
def reader(template, tmp_path, tmp_path_factory, monkeypatch):
    """The working directory of a test: a copy of the reader's folder, where a hub answers nothing."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return tmp_path
