import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast.data.corpora import load_nli
from infobert_fast.evaluation.information import measure_information


@pytest.fixture
def model(nli_folder):
    return AutoModelForSequenceClassification.from_pretrained(nli_folder / "model")


@pytest.fixture
def tokenizer(nli_folder):
    return AutoTokenizer.from_pretrained(nli_folder / "model")


@pytest.fixture
def corpora(nli_folder):
    return load_nli(str(nli_folder / "train.jsonl")), load_nli(str(nli_folder / "test.jsonl"))


def test_bounds(model, tokenizer, corpora):
    train, test = corpora
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measured = measure_information(model, tokenizer, train, test, batch_size=16, epochs=30)
    assert measured == measure_information(model, tokenizer, train, test, batch_size=16, epochs=30)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    # 16 sentences a batch: anchors of one sentence cannot be told apart, so log 16 is the ceiling.
    assert 0.05 < measured.lower < math.log(16)

    # The upper bound is the trace of the covariance of all token rows, here gathered one sentence at a time.
    rows = []
    model.eval()
    for pair in test:
        batch = tokenizer(pair["premise"], pair["hypothesis"], return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**batch, output_hidden_states=True).hidden_states[0][0])
    rows = torch.cat(rows).double()
    assert measured.upper == pytest.approx(float((rows - rows.mean(0)).square().sum(1).mean()), rel=1e-5)


def test_features_without_information_have_none(model, tokenizer, corpora):
    for parameter in model.roberta.encoder.parameters():
        torch.nn.init.zeros_(parameter)  # the sentence's state no longer depends on its tokens
    measured = measure_information(model, tokenizer, *corpora, batch_size=16)
    assert abs(measured.lower) < 1e-3


def test_tokens_that_are_no_anchors(model, tokenizer, corpora):
    """Measured beside the anchors, whose bound does not change."""
    train, test = corpora
    alone = measure_information(model, tokenizer, train, test, batch_size=16, epochs=30)
    both = measure_information(model, tokenizer, train, test, batch_size=16, epochs=30, others=True)
    assert (both.upper, both.lower, alone.lower_others) == (alone.upper, alone.lower, None)
    assert 0 < both.lower_others < math.log(16)
    assert both.lower_others != both.lower
    # The tokens outside a window are those inside the two that surround it: here the lowest half alone.
    high = measure_information(model, tokenizer, train, test, batch_size=16, epochs=3, cl=0.5, ch=1.0, others=True)
    low = measure_information(model, tokenizer, train, test, batch_size=16, epochs=3, cl=0.0, ch=0.5)
    assert high.lower_others == pytest.approx(low.lower, abs=1e-4)


def test_an_empty_window_is_named(model, tokenizer, corpora):
    with pytest.raises(ValueError, match=r"no token of a batch is an anchor for `cl` 0.5 and `ch` 0.5"):
        measure_information(model, tokenizer, *corpora, cl=0.5, ch=0.5)


def test_the_loss_is_that_of_the_models_own_label_order(model, tokenizer, corpora):
    """Anchors follow the gradient of the right label's loss, wherever the model has that label."""
    train, test = corpora
    settings = {"batch_size": 16, "epochs": 2}
    before = measure_information(model, tokenizer, train, test, **settings)
    names, layer = model.config.id2label, model.classifier.out_proj
    turned = [2, 0, 1]
    try:
        model.config.id2label = {i: names[j] for i, j in enumerate(turned)}
        with torch.no_grad():
            layer.weight.copy_(layer.weight[turned])
            layer.bias.copy_(layer.bias[turned])
        after = measure_information(model, tokenizer, train, test, **settings)
    finally:
        model.config.id2label = names
        with torch.no_grad():
            back = [turned.index(i) for i in range(3)]
            layer.weight.copy_(layer.weight[back])
            layer.bias.copy_(layer.bias[back])
    assert (after.upper, after.lower) == pytest.approx((before.upper, before.lower), rel=1e-5)
