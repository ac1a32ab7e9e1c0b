"""The sentence feature is what the head reads; decoders as classifiers train with their last token, padded anyhow."""

import copy

import pytest
import torch
import transformers
from torch import nn

from infobert_fast import InfoBertArguments, functional
from infobert_fast.adversary import FreeLB
from infobert_fast.data.collation import WithLengths
from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, InformationBottleneck
from infobert_fast.training.look import settle_feature
from infobert_fast.training.models.feature import declared_feature, last_marks, read_by_head, sentence_feature
from infobert_fast.training.models.forward import PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step
from infobert_fast.training.steps.smoothness import R3F, SMART, RDrop, SmoothnessObjective, smoothness_step

DECODERS = ["gpt2", "llama", "qwen3"]
HALFWAY = 1e-6  # models whose norms or rotations are in float32 whatever their weights are
SETTINGS = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_steps": 2, "adv_lr": 0.3, "adv_init_mag": 0.5,
            "adv_max_norm": 0.0, "norm_type": "l2", "negatives": "chunk"}  # fmt: skip


def padded(examples, side):
    """The plain collator of the other tests, and its mirror image."""
    longest = max(len(example["input_ids"]) for example in examples)
    rows = {"input_ids": [], "attention_mask": [], "labels": [example["labels"] for example in examples]}
    for example in examples:
        ids, fill = example["input_ids"], longest - len(example["input_ids"])
        rows["input_ids"].append([1] * fill + ids if side == "left" else ids + [1] * fill)
        rows["attention_mask"].append([0] * fill + [1] * len(ids) if side == "left" else [1] * len(ids) + [0] * fill)
    return {name: torch.tensor(value) for name, value in rows.items()}


# ---- the feature itself


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_features_of_a_sentence(side):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    mask = mask.flip(1) if side == "left" else mask
    states = torch.randn(3, 4, 5)
    rows = [row[keep.bool()] for row, keep in zip(states, mask, strict=True)]
    for feature, of_row in (("first", lambda r: r[0]), ("last", lambda r: r[-1]), ("mean", lambda r: r.mean(0))):
        torch.testing.assert_close(sentence_feature(states, mask, feature), torch.stack([of_row(row) for row in rows]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("feature", ["first", "last", "mean"])
def test_a_gradient_tells_what_the_head_reads(feature, side):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    mask = mask.flip(1) if side == "left" else mask
    states = torch.randn(3, 4, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(sentence_feature(states, mask, feature).square().sum(), states)
    assert read_by_head(grad, mask) == feature


def test_a_gradient_that_tells_nothing():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert read_by_head(torch.zeros(2, 4, 3), mask) is None
    assert read_by_head(torch.randn(2, 4, 3), mask) is None  # every token by itself, and padding
    assert read_by_head(torch.ones(2, 4, 3), mask) is None  # a mean that counts padding
    assert read_by_head(torch.ones(2, 1, 3), mask[:, :1]) is None  # one token is first, last and mean


def test_a_text_that_ends_with_the_paddings_id_is_read_before_it(make_model, as_batch):
    """As stock decoders do, which look at ids: where the end of a text is the padding's id too."""
    model = make_model("gpt2").eval()
    inputs = {
        "input_ids": torch.tensor([[4, 5, 1, 1], [1, 4, 5, 6]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]),
        "labels": torch.tensor([0, 1]),
    }
    states, marks = torch.arange(8.0).reshape(2, 4, 1), last_marks(inputs["input_ids"], inputs["attention_mask"], model)
    assert sentence_feature(states, marks, "last").flatten().tolist() == [1.0, 7.0]
    perturbed = PerturbedModel(model)
    perturbed.feature = settle_feature(perturbed, model, as_batch(inputs), None)
    assert perturbed.feature == "last"
    found = perturbed(model, as_batch(inputs))
    assert torch.equal(model.score(found.sentence), found.logits[0])


@pytest.mark.parametrize(
    ("family", "changes", "feature"),
    [
        ("bert", {}, None),
        ("gpt2", {}, "last"),
        ("llama", {}, "last"),
        ("modernbert", {"classifier_pooling": "cls"}, "first"),
        ("modernbert", {"classifier_pooling": "mean"}, "mean"),
    ],
)
def test_what_a_model_declares(make_model, family, changes, feature):
    assert declared_feature(make_model(family, **changes)) == feature


# ---- steps by the literal definition


@pytest.fixture
def compare(make_examples, make_runner, as_batch, make_critic, make_club, literal_step, gradients):
    """Gradients of a step and of its literal twin, and the feature that was settled."""

    def run(model, feature, side="right", lengths=(5, 3, 8, 7), **changes):
        settings = {**SETTINGS, **changes}
        version = settings["version"]
        critic = make_critic(model) if version in AFR_VERSIONS else None
        club = make_club(version)
        twin, twin_club = copy.deepcopy(model), copy.deepcopy(club)
        if club is not None:
            twin_club.optimizer = torch.optim.Adam(twin_club.parameters(), lr=1e-3)
        batch = padded(make_examples(lengths=lengths), side)
        bottleneck = None
        if VERSIONS[version] is not None:
            bottleneck = InformationBottleneck(VERSIONS[version], hidden_size=32, max_length=24)
            bottleneck.club = club
        anchored = AnchoredFeature(settings["cl"], settings["ch"]) if version in AFR_VERSIONS else None
        adversary = FreeLB(settings["adv_lr"], settings["adv_init_mag"], 0.0, settings["adv_steps"])
        runner = make_runner(model)
        runner.model.feature = settle_feature(runner.model, model, as_batch(batch), None)
        objective = Objective(adversary, bottleneck, anchored, critic, settings["beta"], settings["alpha"])
        torch.manual_seed(99)
        infobert_step(objective, as_batch(batch), runner, 5)
        delta = functional.freelb_init(
            twin.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"], settings["adv_init_mag"], seed=5
        )
        torch.manual_seed(99)
        twin_critic = getattr(twin, "mi_estimator", None)
        literal_step(twin, batch, delta, settings, critic=twin_critic, club=twin_club, feature=feature)
        assert runner.model.feature == feature
        return gradients(model), gradients(twin)

    return run


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("version", range(-1, 7))
@pytest.mark.parametrize("family", DECODERS)
def test_decoders_take_the_literal_step(make_model, compare, assert_close, family, version, side):
    tolerance = 1e-12 if family == "gpt2" else HALFWAY
    assert_close(*compare(make_model(family, dtype=torch.float64), "last", side, version=version), tolerance)


@pytest.mark.parametrize("version", [0, 1, 5, 6])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_takes_the_literal_step_with_what_its_head_reads(
    make_model, compare, assert_close, pooling, version
):
    model = make_model("modernbert", dtype=torch.float64, classifier_pooling=pooling)
    assert_close(*compare(model, {"cls": "first"}.get(pooling, pooling), version=version), HALFWAY)


@pytest.mark.parametrize(("pooling", "feature"), [("bos", "first"), ("mean", "mean"), ("late", "mean")])
def test_eurobert_takes_the_literal_step_with_what_its_head_reads(compare, assert_close, pooling, feature):
    config = transformers.EuroBertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, num_labels=3,
        intermediate_size=48, initializer_range=0.2, pad_token_id=1, classifier_pooling=pooling,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.EuroBertForSequenceClassification(config).double().train()
    assert_close(*compare(model, feature, version=6), HALFWAY)


# ---- the other objectives


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "method", [SMART(2.0, 0.3, 0.1, 0.05), R3F(2.0, 0.1), RDrop(2.0)], ids=["smart", "r3f", "rdrop"]
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_compare_two_predictions(
    make_model, make_examples, make_runner, as_batch, gradients, assert_close, family, method, side
):
    """The gradient of the objective written out, under the same dropout masks."""
    model = make_model(family, dtype=torch.float64)
    twin, batch = copy.deepcopy(model), padded(make_examples(lengths=[5, 3, 8, 7]), side)
    torch.manual_seed(99)
    smoothness_step(SmoothnessObjective(method), as_batch(batch), make_runner(model), 5)

    def predict(delta):
        hook = twin.get_input_embeddings().register_forward_hook(lambda module, args, output: output + delta)
        out = twin(**batch)
        hook.remove()
        return out

    def distance(one, other):
        p, q = one.log_softmax(-1), other.log_softmax(-1)
        return ((p.exp() - q.exp()) * (p - q)).sum(-1).mean()

    kept = batch["attention_mask"].unsqueeze(-1)
    delta, generator = torch.zeros(*kept.shape[:2], 32, dtype=torch.float64), torch.Generator().manual_seed(5)
    torch.manual_seed(99)
    first = predict(0.0)
    if isinstance(method, R3F):
        delta = delta.uniform_(-method.scale, method.scale, generator=generator) * kept
    if isinstance(method, SMART):
        delta = (delta.normal_(0, method.noise_std, generator=generator) * kept).requires_grad_()
        value = distance(predict(delta).logits, first.logits.detach()) * len(delta)
        (grad,) = torch.autograd.grad(value, delta)
        delta = (delta.detach() + method.step_size * grad).clamp(-method.epsilon, method.epsilon) * kept
    second = predict(delta)
    both = isinstance(method, RDrop)
    task = (first.loss + second.loss) / 2 if both else first.loss
    (task + method.weight * distance(first.logits, second.logits) / (2 if both else 1)).backward()
    assert_close(gradients(model), gradients(twin), 1e-12 if family == "gpt2" else HALFWAY)


@pytest.mark.parametrize("objective", ["infobert", "vanilla", "freelb", "smart", "r3f", "rdrop"])
def test_decoders_train_with_every_objective(make_model, make_examples, make_trainer, objective):
    model = make_model("gpt2")
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(
        model,
        make_examples(8),
        objective=objective,
        learning_rate=0.05,
        data_collator=lambda rows: padded(rows, "left"),
    )
    trainer.train()
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert any(not torch.equal(model.state_dict()[name], value) for name, value in before.items())


# ---- refusals


class Reading(transformers.BertForSequenceClassification):
    """A head that reads the last place of a row, padding or not."""

    def forward(self, labels=None, **inputs):
        out = self.bert(**{**inputs, "output_hidden_states": True})
        logits = self.classifier(out.last_hidden_state[:, -1])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss, logits, out.hidden_states)


def test_a_head_that_reads_padding_is_refused(make_model, make_examples, make_trainer):
    trainer = make_trainer(Reading(make_model().config), make_examples(4), remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"head of `model` \(Reading\) reads the state of padding in this batch"):
        trainer.train()


@pytest.mark.parametrize("first_batch", [[4] * 4, [3, 5, 3, 5]], ids=["later", "at once"])
def test_left_padding_is_refused_where_a_first_token_is_read(make_model, make_examples, make_trainer, first_batch):
    trainer = make_trainer(
        make_model(), make_examples(lengths=[*first_batch, 3, 5, 3, 5]), data_collator=lambda rows: padded(rows, "left")
    )
    with pytest.raises(ValueError, match=r"padding.*set tokenizer.padding_side"):
        trainer.train()


def test_a_first_token_that_sees_no_other_is_refused(make_model, make_examples, make_trainer):
    trainer = make_trainer(make_model("gpt2"), make_examples(lengths=[6] * 4), global_feature="first")
    with pytest.raises(ValueError, match=r"first token's state, which sees no other token of its sentence"):
        trainer.train()


def test_packing_refuses_left_padding(make_examples):
    with pytest.raises(ValueError, match=r"`packing` was True for a batch whose sentences begin with padding"):
        WithLengths(lambda rows: padded(rows, "left"), packing=True)(make_examples(lengths=[3, 5]))
    assert WithLengths(lambda rows: padded(rows, "left"))(make_examples(lengths=[3, 5]))["left_padded"] is True
    assert WithLengths(lambda rows: padded(rows, "right"))(make_examples(lengths=[3, 5]))["left_padded"] is False


def test_a_feature_other_than_the_heads_is_said(make_model, make_examples, make_trainer, caplog):
    trainer = make_trainer(make_model(), make_examples(4), global_feature="mean")
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "`global_feature` is 'mean'; the head of BertForSequenceClassification reads 'first'" in caplog.text
    with pytest.raises(ValueError, match="`global_feature` was 'middle'"):
        InfoBertArguments("out", global_feature="middle", use_cpu=True)
