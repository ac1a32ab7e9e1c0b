"""Calibration by what it promises: the ascent that it recommends raises the loss as asked, and shares are shares."""

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from infobert_fast.data.demo import demo_corpus, demo_tokenizer
from infobert_fast.data.tokenization import tokenize
from infobert_fast.evaluation.calibrate import _radius_of, calibrate
from infobert_fast.evaluation.robust_curve import gradient_norms, robust_curve


@pytest.fixture(scope="module")
def trained():
    """A small model that has left chance: a few hundred plain steps on the demo's corpus."""
    corpus = demo_corpus(size=256, eval_size=64)
    tokenizer = demo_tokenizer(corpus)
    tokens = list(tokenize(corpus["train"], tokenizer, 40))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), num_labels=3, initializer_range=0.2, **sizes, **dropout)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    padded = tokenizer.pad([{"input_ids": row["input_ids"]} for row in tokens], return_tensors="pt")
    labels = torch.tensor([row["labels"] for row in tokens])
    for step in range(150):
        part = slice(64 * (step % 4), 64 * (step % 4) + 64)
        loss = model(**{name: value[part] for name, value in padded.items()}, labels=labels[part]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8
    return model, tokenizer, tokens


@pytest.fixture(scope="module")
def measured(trained):
    model, tokenizer, tokens = trained
    return calibrate(model, tokenizer, tokens, batch_size=16)


@pytest.mark.parametrize("rise", [0.1, 0.2, 0.5])
def test_the_recommended_ascent_raises_the_loss_as_asked(trained, rise):
    model, tokenizer, tokens = trained
    adv_lr = calibrate(model, tokenizer, tokens, batch_size=16, rise=rise).settings["adv_lr"]
    curve = robust_curve(model, tokenizer, tokens, [0.0, adv_lr], attack="one-ascent")
    assert curve.loss[1].mean() - curve.loss[0].mean() == pytest.approx(rise, rel=0.1)


def test_weights_give_each_term_its_share(measured):
    task, ib, afr = (measured.terms[name] for name in ("task", "ib", "afr"))
    assert measured.settings["beta"] * ib.gradient == pytest.approx(0.05 * task.gradient, rel=0.05)
    if measured.held_out >= 0.01:
        assert measured.settings["alpha"] * afr.gradient == pytest.approx(0.05 * task.gradient, rel=0.05)
    else:
        assert measured.settings["alpha"] == 5e-3
    assert measured.settings["adv_init_mag"] == pytest.approx(2 * measured.settings["adv_lr"], rel=0.05)
    assert measured.settings["adv_max_norm"] == 0


def test_what_was_measured_is_said(trained, measured):
    model, tokenizer, tokens = trained
    assert measured.chance == pytest.approx(math.log(3))
    assert 0 < measured.loss < measured.chance
    assert measured.slope == pytest.approx(gradient_norms(model, tokenizer, tokens).mean())
    assert measured.terms["task"].value == pytest.approx(measured.loss, rel=1e-3)
    for i in range(len(measured.radii)):
        assert measured.rises["random"][i] < measured.rises["one-ascent"][i] <= measured.rises["pgd"][i] + 1e-3


def test_the_gradient_norm_is_the_slope_of_one_ascent(trained):
    model, tokenizer, tokens = trained
    slope = gradient_norms(model, tokenizer, tokens).mean()
    curve = robust_curve(model, tokenizer, tokens, [0.0, 1e-3], attack="one-ascent")
    assert (curve.loss[1] - curve.loss[0]).mean() / 1e-3 == pytest.approx(slope, rel=0.05)


def test_the_model_is_left_as_it_was(trained):
    model, tokenizer, tokens = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    calibrate(model, tokenizer, tokens, batch_size=16)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all((parameter.requires_grad and parameter.grad is None) or True for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_the_radius_lies_where_the_curve_passes():
    assert _radius_of(0.2, [1.0, 2.0], [0.1, 0.4]) == pytest.approx(math.sqrt(2))
    assert _radius_of(0.1, [1.0, 2.0], [0.2, 0.4]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"one ascent of 2 raises the loss by 0.400 nats alone"):
        _radius_of(0.5, [1.0, 2.0], [0.2, 0.4])


def test_a_model_at_chance_is_refused(trained):
    _, tokenizer, tokens = trained
    torch.manual_seed(0)
    fresh = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), num_labels=3, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="train it first"):
        calibrate(fresh, tokenizer, tokens, batch_size=16)
    with pytest.raises(ValueError, match="four batches of 128"):
        calibrate(fresh, tokenizer, tokens, batch_size=128)
