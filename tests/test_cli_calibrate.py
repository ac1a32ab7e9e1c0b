"""``infobert calibrate``: the settings that it prints are settings that ``infobert train`` takes."""

import re

import pytest
import yaml

from infobert_fast.cli import main
from infobert_fast.cli.train import parse_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of the demo's corpus that has left chance, and the corpus as a file."""
    import json

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from infobert_fast.data.demo import demo_corpus, demo_tokenizer
    from infobert_fast.data.tasks import NLI
    from infobert_fast.data.tokenization import tokenize

    out = tmp_path_factory.mktemp("calibrate")
    corpus = demo_corpus(size=128, eval_size=16)
    tokenizer = demo_tokenizer(corpus)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=48, initializer_range=0.2, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0, id2label=dict(enumerate(NLI.labels)),
                        label2id={label: i for i, label in enumerate(NLI.labels)})  # fmt: skip
    model = BertForSequenceClassification(config)
    rows = list(tokenize(corpus["train"], tokenizer, 40))
    batch = tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
    labels = torch.tensor([row["labels"] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    with (out / "train.jsonl").open("w") as file:
        for row in corpus["train"]:
            print(json.dumps({**row, "label": NLI.labels[row["label"]]}), file=file)
    return out


def test_the_settings_are_settings(folder, capsys):
    output, picture = folder / "adversary.yaml", folder / "curve.png"
    data = ["--data", str(folder / "train.jsonl"), "--batch_size", "16", "--limit", "96"]
    files = ["--output", str(output), "--picture", str(picture)]
    assert main(["calibrate", str(folder / "model"), *data, *files]) == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(output.read_text())
    assert list(settings) == ["adv_lr", "adv_init_mag", "adv_max_norm", "alpha", "beta"]
    assert f"adv_lr: {settings['adv_lr']}" in printed
    assert re.search(r"one-ascent", printed)
    assert picture.read_bytes().startswith(b"\x89PNG")
    _, _, args = parse_training([str(output), "--output_dir", str(folder / "out"), "--use_cpu", "True"])
    assert {name: getattr(args, name) for name in settings} == settings


def test_refusals_before_the_work(folder, capsys):
    few = ["calibrate", str(folder / "model"), "--data", str(folder / "train.jsonl"), "--limit", "40"]
    assert main(few) == 2
    assert "`data` has 40 examples; four batches of `batch_size` 32" in capsys.readouterr().err
    assert main([*few, "--picture", "curve.pdf"]) == 2
    assert "`picture` was curve.pdf" in capsys.readouterr().err
