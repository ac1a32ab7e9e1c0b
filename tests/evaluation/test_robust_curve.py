"""The curve of robust accuracy against its own attack written out, example by example."""

import numpy as np
import pytest
import torch
import transformers
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from infobert_fast.data.demo import demo_corpus, demo_tokenizer
from infobert_fast.data.tokenization import tokenize
from infobert_fast.evaluation import robust_curve as module
from infobert_fast.evaluation.robust_curve import mean_token_norm, robust_curve
from infobert_fast.training.models.perturbation import WordEmbeddings

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def corpus():
    return demo_corpus(size=40, eval_size=12)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return demo_tokenizer(corpus)


@pytest.fixture
def tokens(corpus, tokenizer):
    return tokenize(corpus["test_clean"], tokenizer, 40)


def make(tokenizer, kind=BertForSequenceClassification, **changes):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.4, **{**SIZES, "num_labels": 3, **changes})
    return kind(config).train()


def loss_of(model, row, delta):
    """One example's loss and answer, its embeddings looked up by hand."""
    ids = torch.tensor([row["input_ids"]])
    outputs = model(inputs_embeds=model.get_input_embeddings()(ids) + delta, attention_mask=torch.ones_like(ids))
    loss = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([row["labels"]]))
    return loss, int(outputs.logits.argmax()) == row["labels"]


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_one_ascent_is_a_step_along_the_gradient(tokenizer, tokens, norm_type):
    model = make(tokenizer)
    curve = robust_curve(model, tokenizer, tokens, [0.0, 0.3], attack="one-ascent", norm_type=norm_type)
    model.eval()
    for i, row in enumerate(tokens):
        delta = torch.zeros(1, len(row["input_ids"]), 16, requires_grad=True)
        clean, right = loss_of(model, row, delta)
        (grad,) = torch.autograd.grad(clean, delta)
        step = grad / grad.norm() if norm_type == "l2" else grad.sign()
        moved, still = loss_of(model, row, 0.3 * step)
        assert curve.loss[0, i] == pytest.approx(clean.item(), rel=1e-4)
        assert curve.loss[1, i] == pytest.approx(moved.item(), rel=1e-4)
        assert curve.right[:, i].tolist() == [right, still]


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_pgd_is_stronger_than_one_ascent_and_that_than_noise(tokenizer, tokens, norm_type):
    model, radii = make(tokenizer), [0.0, 0.1, 0.4]
    mean = {
        attack: robust_curve(model, tokenizer, tokens, radii, attack=attack, norm_type=norm_type).loss.mean(1)
        for attack in ("random", "one-ascent", "pgd")
    }
    assert mean["random"][0] == mean["one-ascent"][0] == mean["pgd"][0]
    for i in (1, 2):
        assert mean["random"][i] < mean["one-ascent"][i] < mean["pgd"][i]
    assert mean["pgd"][1] < mean["pgd"][2]


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_no_perturbation_leaves_its_ball_or_touches_padding(tokenizer, tokens, norm_type, monkeypatch):
    """Every delta that the model is given."""
    seen = []

    class Noting(WordEmbeddings):
        def shifted(self, delta):
            if delta is not None:
                seen.append((delta.detach(), masks[-1]))
            return super().shifted(delta)

    model, masks = make(tokenizer), []
    original = module._split

    def noted(batch, indices):
        masks.append(batch["attention_mask"])
        return original(batch, indices)

    monkeypatch.setattr(module, "WordEmbeddings", Noting)
    monkeypatch.setattr(module, "_split", noted)
    robust_curve(model, tokenizer, tokens, [0.3], norm_type=norm_type, batch_tokens=200)
    assert len(seen) > 7
    for delta, mask in seen:
        assert not delta[mask == 0].any()
        size = delta.flatten(1).norm(dim=1) if norm_type == "l2" else delta.flatten(1).abs().amax(1)
        assert bool((size <= 0.3 * (1 + 1e-4)).all())
    assert max(float(delta.abs().max()) for delta, _ in seen) > 0.01


def test_a_result_is_a_function_of_the_seed_alone(tokenizer, tokens):
    """Batches of other sizes, other radii beside it, and the generators' state do not move it."""
    model = make(tokenizer)
    first = robust_curve(model, tokenizer, tokens, [0.2], attack="random")
    torch.manual_seed(5)
    again = robust_curve(model, tokenizer, tokens, [0.1, 0.2], attack="random", batch_tokens=60)
    np.testing.assert_allclose(first.loss[0], again.loss[1], rtol=1e-4)
    other = robust_curve(model, tokenizer, tokens, [0.2], attack="random", seed=1)
    assert np.abs(first.loss - other.loss).max() > 1e-4


def test_the_model_is_left_as_it_was(tokenizer, tokens):
    model = make(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    robust_curve(model, tokenizer, tokens, [0.2])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    assert model.classifier.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.get_input_embeddings()._forward_hooks


def test_regression_and_answers(tokenizer, tokens):
    model = make(tokenizer)
    model.classifier, model.config.num_labels = torch.nn.Linear(16, 1), 1
    curve = robust_curve(model, tokenizer, tokens, [0.0, 0.3])
    assert curve.right is None
    assert (curve.loss[1] > curve.loss[0]).all()
    with pytest.raises(ValueError, match="no right answers"):
        curve.accuracy(0)
    answers = [{"input_ids": row["input_ids"], "start_positions": 1, "end_positions": 2} for row in tokens]
    curve = robust_curve(make(tokenizer, BertForQuestionAnswering, num_labels=2), tokenizer, answers, [0.0, 0.3])
    assert curve.right.shape == (2, len(tokens))
    assert curve.loss[1].mean() > curve.loss[0].mean()


def test_a_decoder_has_a_curve(tokenizer, tokens):
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=3
    )
    config.pad_token_id = tokenizer.pad_token_id
    model = transformers.GPT2ForSequenceClassification(config)
    curve = robust_curve(model, tokenizer, tokens, [0.0, 0.5])
    assert curve.loss[1].mean() > curve.loss[0].mean()


def test_relative_radii_have_a_measure(tokenizer, tokens):
    model = make(tokenizer)
    ids = np.concatenate([row["input_ids"] for row in tokens])
    expected = model.get_input_embeddings().weight[torch.from_numpy(ids)].norm(dim=1).mean()
    assert mean_token_norm(model, tokens) == pytest.approx(float(expected), rel=1e-5)


def test_refusals(tokenizer, tokens):
    model = make(tokenizer)
    with pytest.raises(ValueError, match="`attack` was 'fgsm'"):
        robust_curve(model, tokenizer, tokens, [0.1], attack="fgsm")
    with pytest.raises(ValueError, match=r"`radii` was -0.1"):
        robust_curve(model, tokenizer, tokens, [-0.1])
    with pytest.raises(ValueError, match="no labels"):
        robust_curve(model, tokenizer, tokens.remove_columns("labels"), [0.1])
