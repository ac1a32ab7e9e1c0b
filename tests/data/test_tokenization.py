import os
import subprocess
import sys

import datasets
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DataCollatorWithPadding,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from infobert_fast.data.collation import WithLengths
from infobert_fast.data.corpora import LABELS, load_nli
from infobert_fast.data.tokenization import tokenize


@pytest.fixture
def path(jsonl, corpus):
    """A corpus that lies in a file, as only those are cached."""
    rows = [{**row, "label": LABELS[row["label"]]} for row in corpus["train"]]
    return jsonl(*rows)


def test_tokenize_adds_no_padding(corpus, tokenizer):
    dataset = tokenize(corpus["train"], tokenizer)
    assert set(dataset.column_names) == {"input_ids", "length", "labels"}
    assert dataset["labels"][:] == corpus["train"]["label"][:]
    for row, raw in zip(dataset, corpus["train"], strict=True):
        assert row["input_ids"] == tokenizer(raw["premise"], raw["hypothesis"])["input_ids"]
        assert row["length"] == len(row["input_ids"])


def test_tokenize_truncates_the_longer_sentence_first(tokenizer):
    rows = {"premise": ["the " * 50, "box"], "hypothesis": ["box is red", "the " * 50], "label": [0, 1]}
    dataset = tokenize(datasets.Dataset.from_dict(rows), tokenizer, max_length=12)
    long_premise, long_hypothesis = map(tokenizer.decode, dataset["input_ids"])
    assert long_premise == "<s> the the the the the </s> </s> box is red </s>"
    assert long_hypothesis == f"<s> box </s> </s> {'the ' * 7}</s>"
    assert dataset["length"][:] == [12, 12]


def test_tokenize_keeps_token_types_where_the_model_has_them(corpus):
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"])}
    bert = BertTokenizer(vocab=words)
    dataset = tokenize(corpus["test_clean"], bert)
    assert {kind for row in dataset["token_type_ids"] for kind in row} == {0, 1}


def test_tokenize_is_cached_whatever_the_tokenizer_did_before(path, tokenizer, monkeypatch):
    first = tokenize(load_nli(path), tokenizer)
    assert first.cache_files
    tokenizer(["the", "the box"], padding=True, truncation=True, max_length=9)  # changes its state
    monkeypatch.setattr("infobert_fast.data.tokenization._encode.__code__", (lambda *_, **__: 1 / 0).__code__)
    assert tokenize(load_nli(path), tokenizer).cache_files == first.cache_files
    with pytest.raises(ZeroDivisionError):
        tokenize(load_nli(path), tokenizer, max_length=64)


def test_tokenize_is_cached_across_processes(path, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys, transformers; from infobert_fast.data import corpora, tokenization;"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1]);"
        "print(tokenization.tokenize(corpora.load_nli(sys.argv[2]), tokenizer).cache_files)"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path, path], capture_output=True, text=True, env=environment, check=True
    )
    here = tokenize(load_nli(path), AutoTokenizer.from_pretrained(tmp_path))
    assert run.stdout.strip() == str(here.cache_files)


def test_tokenize_refuses_what_it_cannot_use(corpus, tokenizer):
    with pytest.raises(
        ValueError, match=r"lacks the columns \['premise'\]; it has \['hypothesis', 'label'\]; use load_"
    ):
        tokenize(corpus["train"].remove_columns("premise"), tokenizer)
    with pytest.raises(ValueError, match="`max_length` was 5; a pair takes at least 6 tokens"):
        tokenize(corpus["train"], tokenizer, max_length=5)


def test_transformers_groups_by_the_length_column(tmp_path, tokenizer):
    """Batches of near-equal lengths, and the host-side counts survive the Trainer's and accelerate's handling."""
    words = torch.randint(1, 40, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = {"premise": ["box " * n for n in words], "hypothesis": ["box"] * 512, "label": [0] * 512}
    dataset = tokenize(datasets.Dataset.from_dict(rows), tokenizer)
    model = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )

    def padding(strategy):
        arguments = TrainingArguments(
            tmp_path, train_sampling_strategy=strategy, per_device_train_batch_size=8, use_cpu=True, report_to=[]
        )
        trainer = Trainer(model, arguments, WithLengths(DataCollatorWithPadding(tokenizer)), train_dataset=dataset)
        batches = list(trainer.get_train_dataloader())
        assert all(batch["lengths"] == batch["attention_mask"].sum(1).tolist() for batch in batches)
        assert sorted(n for batch in batches for n in batch["lengths"]) == sorted(dataset["length"])
        return sum((batch["attention_mask"] == 0).sum().item() for batch in batches)

    assert padding("group_by_length") < 0.25 * padding("random")
