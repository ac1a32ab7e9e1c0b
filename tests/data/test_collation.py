import os
import subprocess
import sys

import datasets
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from infobert_fast.data.collation import NliCollator, check_attention_mask, tokenize
from infobert_fast.data.corpora import LABELS, load_nli

EXAMPLE = {"input_ids": [0, 5, 2], "labels": 1}
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=6)


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
    batch = NliCollator(bert)([dataset[0], dataset[1]])
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids", "labels", "lengths"]
    assert set(batch["token_type_ids"].flatten().tolist()) == {0, 1}


def test_tokenize_is_cached_whatever_the_tokenizer_did_before(path, tokenizer, monkeypatch):
    first = tokenize(load_nli(path), tokenizer)
    assert first.cache_files
    tokenizer(["the", "the box"], padding=True, truncation=True, max_length=9)  # changes its state
    monkeypatch.setattr("infobert_fast.data.collation._encode.__code__", (lambda *_, **__: 1 / 0).__code__)
    assert tokenize(load_nli(path), tokenizer).cache_files == first.cache_files
    with pytest.raises(ZeroDivisionError):
        tokenize(load_nli(path), tokenizer, max_length=64)


def test_tokenize_is_cached_across_processes(path, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys, transformers; from infobert_fast.data import collation, corpora;"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1]);"
        "print(collation.tokenize(corpora.load_nli(sys.argv[2]), tokenizer).cache_files)"
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
    with pytest.raises(ValueError, match="max_length is 5; a pair takes at least 6 tokens"):
        tokenize(corpus["train"], tokenizer, max_length=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lengths=LENGTHS, multiple=st.sampled_from([None, 1, 8, 32]))
def test_collator_pads_and_counts(tokenizer, lengths, multiple):
    examples = [{"input_ids": [5] * n, "labels": i % 3, "length": n} for i, n in enumerate(lengths)]
    batch = NliCollator(tokenizer, multiple)(examples)
    assert list(batch) == ["input_ids", "attention_mask", "labels", "lengths"]
    assert batch["lengths"] == lengths
    assert all(type(n) is int for n in batch["lengths"])
    width = max(lengths) if multiple is None else -(-max(lengths) // multiple) * multiple
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(lengths), width)
    for ids, mask, n in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), lengths, strict=True):
        assert ids == [5] * n + [tokenizer.pad_token_id] * (width - n)
        assert mask == [1] * n + [0] * (width - n)
    assert batch["labels"].tolist() == [i % 3 for i in range(len(lengths))]
    assert batch["labels"].dtype == batch["input_ids"].dtype == torch.int64


def test_collator_takes_masks_of_its_examples(tokenizer):
    examples = [{**EXAMPLE, "attention_mask": [1, 0, 1]}, {**EXAMPLE, "attention_mask": [1, 1, 1]}]
    assert NliCollator(tokenizer)(examples)["lengths"] == [2, 3]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "examples is empty; a batch needs at least one"),
        ([EXAMPLE, {"input_ids": [0]}], r"example 1 of the batch lacks \['labels'\]; tokenize"),
        ([{"labels": 0}], r"example 0 of the batch lacks \['input_ids'\]"),
        ([EXAMPLE, {**EXAMPLE, "attention_mask": [1, 1, 1]}], r"example 1 .*differs .*having \['attention_mask'\]"),
        ([{**EXAMPLE, "attention_mask": [1, 1]}], "example 0 of the batch has an attention_mask of another length"),
        ([EXAMPLE, {"input_ids": [], "labels": 0}], r"attention_mask of examples \[1\] is all 0"),
        ([{"input_ids": [], "labels": 0}], r"attention_mask of examples \[0\] is all 0"),
        ([{**EXAMPLE, "attention_mask": m} for m in ([1, 1, 1], [1, 1, 2])], "of example 1 is 2 at token 2"),
    ],
)
def test_collator_refuses_bad_batches(tokenizer, examples, message):
    with pytest.raises(ValueError, match=message):
        NliCollator(tokenizer)(examples)


@given(LENGTHS, st.sampled_from([torch.bool, torch.int64, torch.float32, torch.bfloat16]))
def test_check_attention_mask_accepts_any_type_of_zeros_and_ones(lengths, dtype):
    mask = torch.arange(20)[None, :] < torch.tensor(lengths)[:, None]
    check_attention_mask(mask.to(dtype))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3), r"attention_mask has the shape \[3\]; it must be \[batch, length\]"),
        (torch.ones(1, 1, 3), r"attention_mask has the shape \[1, 1, 3\]"),
        (
            torch.tensor([[1.0, 1.0], [1.0, 0.5]]),
            "of example 1 is 0.5 at token 1; it must be 1 for tokens, 0 for padding",
        ),
        (torch.tensor([[1.0, float("nan")]]), "of example 0 is nan at token 1"),
        (torch.tensor([[-1, 1]]), "of example 0 is -1 at token 0"),
        (
            torch.tensor([[0, 0], [1, 0], [0, 0]]),
            r"of examples \[0, 2\] is all 0; every example needs at least one token",
        ),
        (torch.ones(2, 0), r"of examples \[0, 1\] is all 0"),
    ],
)
def test_check_attention_mask_refuses_the_rest(mask, message):
    with pytest.raises(ValueError, match=message):
        check_attention_mask(mask)


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
        trainer = Trainer(model, arguments, NliCollator(tokenizer), train_dataset=dataset)
        batches = list(trainer.get_train_dataloader())
        assert all(batch["lengths"] == batch["attention_mask"].sum(1).tolist() for batch in batches)
        assert sorted(n for batch in batches for n in batch["lengths"]) == sorted(dataset["length"])
        return sum((batch["attention_mask"] == 0).sum().item() for batch in batches)

    assert padding("group_by_length") < 0.25 * padding("random")
