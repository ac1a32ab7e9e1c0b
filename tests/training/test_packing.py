"""A packed encoder is the padded one: logits, states and gradients, and every term of the objective."""

import copy

import pytest
import torch

from infobert_fast.data.packing import pack_sentences
from infobert_fast.training.models.packing import PackedEncoder, unpack

LENGTHS = [3, 11, 5, 7, 4, 9]
STRONG = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_lr": 0.3, "adv_init_mag": 0.5, "critic_hidden_dim": 20}
SUPPORTED = ["bert", "roberta", "electra", "albert", "distilbert"]


@pytest.fixture
def make_plain(make_model):
    """A model without any dropout, also of the rates that its family's list does not name."""

    def make(family="bert", **changes):
        model = make_model(family, dropout=0.0, dtype=torch.float64, **changes)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        return model

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_states_and_gradients_are_the_padded_ones(
    make_plain, make_examples, pad, gradients, assert_close, family, attention
):
    model, batch = make_plain(family, attention=attention), pad(make_examples(lengths=LENGTHS))
    kept = batch["attention_mask"].bool()
    padded = model(**batch, output_hidden_states=True)
    padded.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    encoder, packing = PackedEncoder(model), pack_sentences(LENGTHS, max(LENGTHS))
    assert packing.source.numel() < batch["input_ids"].numel()
    with encoder.rows(packing):
        packed = model(**batch, output_hidden_states=True)
    packed.loss.backward()
    torch.testing.assert_close(packed.logits, padded.logits, atol=1e-12, rtol=0)
    assert_close(gradients(model), expected, 1e-12)
    assert packed.hidden_states[0].shape[:2] == packing.source.shape
    first = unpack(packing, packed.hidden_states[0])
    for ours, theirs in ((first, padded.hidden_states[0]), (packed.hidden_states[-1], padded.hidden_states[-1])):
        torch.testing.assert_close(ours[kept], theirs[kept], atol=1e-12, rtol=0)
        assert not ours[~kept].any()
    again = model(**batch)  # outside the context the model is as ever
    assert torch.equal(again.logits, padded.logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"version": 6, "adv_steps": 3},
        {"version": 6, "adv_steps": 2, "norm_type": "linf", "negatives": "batch", "anchor_source": "previous"},
        {"version": 5, "adv_steps": 2},
        {"version": 1, "adv_steps": 1},
        {"objective": "freelb", "adv_steps": 2},
        {"objective": "smart", "smart_epsilon": 0.3, "smart_step_size": 2.0, "smart_noise_std": 0.2},
    ],
    ids=str,
)
def test_every_objective_has_the_padded_gradients(
    make_plain, make_examples, make_trainer, make_critic, movement, assert_close, settings
):
    """Perturbation, anchors and bounds see the same rows; two micro-batches with accumulation."""
    chosen = {**STRONG, **settings}
    if "objective" in settings and settings["objective"] == "smart":
        del chosen["adv_init_mag"]
    found, logs = [], []
    for packing in (False, True):
        model = make_plain("roberta")
        if settings.get("version", -1) > 3:
            make_critic(model)
        trainer = make_trainer(
            model,
            make_examples(lengths=LENGTHS),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            packing=packing,
            **chosen,
        )
        torch.manual_seed(3)
        found.append(movement(model, trainer.train))
        logs.append([line for line in trainer.state.log_history if "loss" in line])
    assert_close(found[1], found[0], 1e-9)
    assert logs[1][0]["loss"] == pytest.approx(logs[0][0]["loss"], rel=1e-5)


def test_the_encoder_computes_the_rows_alone(make_plain, make_examples, make_trainer):
    """Tokens are counted where a layer sees them; evaluation stays padded."""
    model, seen = make_plain(), []
    model.bert.encoder.layer[0].register_forward_hook(
        lambda module, args, out: seen.append((module.training, args[0].shape[:2].numel()))
    )
    examples = make_examples(lengths=LENGTHS * 2)
    trainer = make_trainer(
        model,
        examples,
        per_device_train_batch_size=6,
        packing=True,
        objective="vanilla",
        learning_rate=0.01,
        eval_dataset=examples[:6],
    )
    trainer.train()
    trained = [tokens for training, tokens in seen if training]
    rows = pack_sentences(LENGTHS, 11).source.numel()
    assert trained[-2:] == [rows, rows]  # before them, the look at the first batch
    assert sum(LENGTHS) <= rows < 6 * 11
    assert trainer._throughput._computed == rows
    seen.clear()
    trainer.evaluate()
    assert seen == [(False, 66)]


def test_dropout_masks_repeat_in_the_rows(make_model, make_examples, make_trainer):
    """With an adversary that never moves, the passes of a step have one loss: least, greatest and mean."""
    still = {**STRONG, "adv_lr": 0.0, "adv_init_mag": 0.0, "adv_steps": 2, "learning_rate": 0.0, "packing": True}
    model, losses = make_model(dropout=0.3), []
    model.register_forward_hook(lambda module, args, out: losses.append(out.loss.item()) if module.training else None)
    make_trainer(model, make_examples(lengths=LENGTHS[:4] * 2), **still).train()
    look, *losses = losses
    assert len(losses) == 4
    assert look == losses[0] == losses[1] != losses[2] == losses[3]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("modernbert", "a ModernBertForSequenceClassification has no `encoder` or `transformer`"),
        ("deberta-v2", "a DebertaV2ForSequenceClassification does not give the same logits packed as padded"),
    ],
)
def test_models_that_cannot_be_packed_are_refused(make_plain, make_examples, make_trainer, family, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_plain(family), make_examples(lengths=LENGTHS), packing=True, objective="vanilla").train()


def test_an_attention_with_another_mask_is_refused(make_plain):
    model = make_plain()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="`packing` was True with `attn_implementation` 'flex_attention'"):
        PackedEncoder(model)


def test_the_check_sees_a_leak_between_sentences(make_plain, make_examples, pad, monkeypatch):
    """A mask that let tokens see the whole row would be noticed."""
    model, batch = make_plain(), pad(make_examples(lengths=LENGTHS))
    encoder = PackedEncoder(model)
    encoder.check(model, batch)
    leaky = copy.deepcopy(encoder)
    original = leaky._pack

    def pack(module, args, kwargs):
        changed = original(module, args, kwargs)
        if changed is not None:
            changed[1]["attention_mask"] = torch.ones_like(changed[1]["attention_mask"])
        return changed

    stack = model.bert.encoder
    stack._forward_pre_hooks.clear()
    stack._forward_pre_hooks_with_kwargs.clear()
    stack._forward_hooks.clear()
    stack.register_forward_pre_hook(pack, with_kwargs=True)
    stack.register_forward_hook(leaky._unpack)
    with pytest.raises(ValueError, match="does not give the same logits"):
        leaky.check(model, batch)
