import datasets
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast.data.corpora import load_nli
from infobert_fast.evaluation.accuracy import Accuracy, evaluate, predict
from infobert_fast.evaluation.batches import token_batches


@pytest.fixture
def model(nli_folder):
    return AutoModelForSequenceClassification.from_pretrained(nli_folder / "model")


@pytest.fixture
def tokenizer(nli_folder):
    return AutoTokenizer.from_pretrained(nli_folder / "model")


@pytest.fixture
def corpus(nli_folder):
    return load_nli(str(nli_folder / "test.jsonl"))


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Wilson's interval solves (p - q)^2 = z^2 q (1 - q) / n for q.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (9, 10, 0.5958, 0.9821)],
)
def test_interval(correct, count, low, high):
    result = Accuracy(correct, count)
    assert result.value == correct / count
    assert result.interval == pytest.approx((low, high), abs=1e-4)
    for edge in result.interval:
        assert (result.value - edge) ** 2 == pytest.approx(1.959963984540054**2 * edge * (1 - edge) / count, abs=1e-12)


def test_batches_hold_every_example_once_within_the_budget():
    lengths = [5, 1, 40, 7, 7, 3, 2, 12]
    batches = list(token_batches(lengths, 24))
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert batches[0] == [2]  # longer than the budget, alone
    assert all(len(b) * max(lengths[i] for i in b) <= 24 for b in batches[1:])
    assert list(token_batches([], 24)) == []


def test_predictions_keep_the_order_and_do_not_depend_on_the_batches(model, tokenizer, corpus):
    whole = predict(model, tokenizer, corpus)
    assert (predict(model, tokenizer, corpus, batch_tokens=40) == whole).all()
    one = [predict(model, tokenizer, corpus.select([i]))[0] for i in range(6)]
    assert (whole[:6] == one).all()
    assert len(set(whole)) > 1


def test_evaluate_counts_right_answers(model, tokenizer, corpus):
    predictions = predict(model, tokenizer, corpus)
    relabelled = datasets.Dataset.from_dict({**corpus.to_dict(), "label": predictions})
    results = evaluate(model, tokenizer, {"all": relabelled, "some": corpus})
    assert results["all"] == Accuracy(len(corpus), len(corpus))
    assert results["some"].correct == int((predictions == np.array(corpus["label"])).sum())


def test_label_orders_are_taken_by_name(model, tokenizer, corpus):
    before = predict(model, tokenizer, corpus)
    model.config.id2label = {0: "CONTRADICTION", 1: "entailment", 2: "Neutral"}
    assert (predict(model, tokenizer, corpus) == np.array([2, 0, 1])[before]).all()
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert (predict(model, tokenizer, corpus) == before).all()


def test_other_label_sets_are_refused(model, tokenizer, corpus):
    model.config.id2label = {0: "yes", 1: "no", 2: "maybe"}
    with pytest.raises(ValueError, match=r"the model's labels are .*'yes'.*must be entailment, neutral, contradiction"):
        predict(model, tokenizer, corpus)
    model.config.id2label = {0: "entailment", 1: "neutral"}
    with pytest.raises(ValueError, match=r"the model has 2 labels"):
        predict(model, tokenizer, corpus)
