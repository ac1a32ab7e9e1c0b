import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast.data.corpora import load_nli
from infobert_fast.data.tasks import NLI2, TASKS
from infobert_fast.evaluation import scoring
from infobert_fast.evaluation.accuracy import Accuracy, evaluate, label_order, output_order, predict, predictions
from infobert_fast.evaluation.batches import token_batches
from infobert_fast.evaluation.scoring import probabilities


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
    with pytest.raises(ValueError, match="are called LABEL_0, LABEL_1, LABEL_2, which says nothing of them: name them"):
        predict(model, tokenizer, corpus)


def test_three_relations_answer_a_set_of_two(model, tokenizer, corpus):
    """The most probable output decides, as HANS's authors count; the class has the sum of its outputs' shares."""
    with torch.no_grad():
        model.classifier.out_proj.bias[0] += 2  # it would never answer entailment
    three = predictions(model, tokenizer, corpus)
    np.testing.assert_allclose(three.probabilities.sum(1), 1)
    for task in (NLI2, TASKS["rte"]):
        part = corpus.rename_columns(dict(zip(corpus.column_names, (*task.texts, "label"), strict=True)))
        two = predictions(model, tokenizer, part, task=task)
        assert (two.values == (three.values > 0)).all()
        np.testing.assert_allclose(two.probabilities[:, 1], three.probabilities[:, 1:].sum(1))
    assert set(two.values) == {0, 1}
    pairs = list(zip(corpus["premise"], corpus["hypothesis"], strict=True))
    assert (probabilities(model, tokenizer, pairs, task=NLI2).argmax(1) == two.values).all()
    model.config.id2label = {0: "CONTRADICTION", 1: "entailment", 2: "Neutral"}
    assert label_order(model, NLI2).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="tells 3 classes apart and nli2 2, so that no output's loss"):
        output_order(model, NLI2)
    assert output_order(model).tolist() == [1, 2, 0]


def test_an_attack_asks_for_the_most_probable_output_too(model, tokenizer, monkeypatch):
    """Neither of the two others is as probable as entailment, though together they are more so."""
    monkeypatch.setattr(scoring, "_rows", lambda *_: np.log([[0.4, 0.3, 0.3], [0.3, 0.3, 0.4]]))
    found = probabilities(model, tokenizer, [("a", "b")] * 2, task=NLI2)
    np.testing.assert_allclose(found, [[4 / 7, 3 / 7], [3 / 7, 4 / 7]])
    np.testing.assert_allclose(probabilities(model, tokenizer, [("a", "b")] * 2)[0], [0.4, 0.3, 0.3])


@pytest.mark.parametrize(
    "names",
    [
        ("entailment", "neutral", "neutral"),  # twice, and no contradiction
        ("entailment", "not_entailment", "other"),
        ("neutral", "contradiction", "not_entailment"),  # nothing entails
    ],
)
def test_names_that_do_not_part_two_classes(model, names):
    model.config.id2label = dict(enumerate(names))
    with pytest.raises(ValueError, match="the model's labels are"):
        label_order(model, NLI2)


def test_an_always_neutral_model_is_half_right_on_two_balanced_classes(model, tokenizer, corpus):
    with torch.no_grad():
        for parameter in model.classifier.out_proj.parameters():
            parameter.zero_()
        model.classifier.out_proj.bias[1] = 1
    two = datasets.Dataset.from_dict({**corpus.to_dict(), "label": [i % 2 for i in range(len(corpus))]})
    assert evaluate(model, tokenizer, {"hans": two}, task=NLI2)["hans"].value == 0.5


def test_logits_that_are_not_finite_are_refused(model, tokenizer, corpus):
    with torch.no_grad():
        model.classifier.out_proj.bias[1] = float("nan")
    with pytest.raises(ValueError, match=r"the model's logits of example 1 of dev are \["):
        predict(model, tokenizer, corpus, name="dev")
    with pytest.raises(ValueError, match=r"the model's logits of \('a', 'b'\) are"):
        probabilities(model, tokenizer, [("a", "b")])


def test_other_label_sets_are_refused(model, tokenizer, corpus):
    model.config.id2label = {0: "yes", 1: "no", 2: "maybe"}
    with pytest.raises(ValueError, match=r"the model's labels are .*'yes'.*must be entailment, neutral, contradiction"):
        predict(model, tokenizer, corpus)
    model.config.id2label = {0: "entailment", 1: "neutral"}
    with pytest.raises(ValueError, match=r"the model has 2 labels"):
        predict(model, tokenizer, corpus)
