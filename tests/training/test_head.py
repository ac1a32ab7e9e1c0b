"""A checkpoint whose labels are in another order keeps what it knows."""

import pytest
import torch
import transformers

from infobert_fast.data.tasks import NLI, TASKS
from infobert_fast.training.models.head import head_order, reorder_head, set_labels


def named(*names):
    return transformers.BertConfig(num_labels=len(names), id2label=dict(enumerate(names)))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("entailment", "neutral", "contradiction"), [0, 1, 2]),
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), [2, 1, 0]),
        (("contradiction", "entailment", "neutral"), [1, 2, 0]),
        (("REFUTES", "SUPPORTS", "NOT ENOUGH INFO"), [1, 2, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("entailment", "neutral", "other"), None),
        (("entailment", "entail", "neutral"), None),
        (("entailment", "not_entailment"), None),
    ],
)
def test_orders(names, order):
    assert head_order(named(*names), NLI) == order


def test_two_tasks_of_one_size():
    assert head_order(named("not_entailment", "entailment"), TASKS["rte"]) == [1, 0]
    assert head_order(named("negative", "positive"), TASKS["rte"]) is None


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "electra", "albert", "distilbert", "modernbert"])
def test_the_outputs_are_permuted_and_nothing_else(make_model, make_examples, pad, family):
    model = make_model(family).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("classifier") and name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    batch = pad(make_examples(4))
    with torch.no_grad():
        before = model(**batch).logits
        reorder_head(model, [1, 2, 0])
        after = model(**batch).logits
    torch.testing.assert_close(after, before[:, [1, 2, 0]], rtol=0, atol=1e-6)
    assert not torch.equal(after, before)


def test_a_classifier_that_cannot_be_told_is_refused(make_model):
    model = make_model()
    model.add_module("another", torch.nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"cannot be told among \['classifier', 'another'\]"):
        reorder_head(model, [1, 0, 2])
    reorder_head(model, [0, 1, 2])  # nothing to do


def test_regression_has_one_output():
    config = named("a", "b", "c")
    set_labels(config, TASKS["stsb"])
    assert (config.num_labels, config.problem_type) == (1, "regression")
    set_labels(config, TASKS["cola"])
    assert config.id2label == {0: "unacceptable", 1: "acceptable"}
    assert config.problem_type == "single_label_classification"
