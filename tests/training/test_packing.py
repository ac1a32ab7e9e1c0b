"""A packed encoder is the padded one: logits, states and gradients, and every term of the objective."""

import pytest
import torch

from infobert_fast.data.packing import pack_sentences
from infobert_fast.training.models.packing import PackedEncoder, unpack

LENGTHS = [3, 11, 5, 7, 4, 9]
STRONG = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_lr": 0.3, "adv_init_mag": 0.5, "critic_hidden_dim": 20}
SUPPORTED = ["bert", "roberta", "electra", "albert", "distilbert", "modernbert", "modernbert mean"]


@pytest.fixture
def make_plain(make_model):
    """A model without any dropout, also of the rates that its family's list does not name."""

    def make(family="bert", **changes):
        family, *pooling = family.split()
        if pooling:
            changes["classifier_pooling"] = pooling[0]
        model = make_model(family, dropout=0.0, dtype=torch.float64, **changes)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        return model

    return make


# Not ModernBERT's eager attention: padded and in float64, a place whose window is all padding is NaN there.
@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f in SUPPORTED for a in ("sdpa", "eager") if "modernbert" not in f or a == "sdpa"],
)
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
        {"version": 6, "adv_steps": 2, "family": "modernbert mean"},
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
    chosen = {"family": "roberta", **STRONG, **settings}
    family = chosen.pop("family")
    if "objective" in settings and settings["objective"] == "smart":
        del chosen["adv_init_mag"]
    found, logs = [], []
    for packing in (False, True):
        model = make_plain(family)
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
    look, _, *losses = losses  # the look at the first batch takes two forwards
    assert len(losses) == 4
    assert look == losses[0] == losses[1] != losses[2] == losses[3]


def test_models_that_cannot_be_packed_are_refused(make_plain, make_examples, make_trainer):
    message = "a DebertaV2ForSequenceClassification does not give the same logits packed as padded"
    with pytest.raises(ValueError, match=message):
        make_trainer(
            make_plain("deberta-v2"), make_examples(lengths=LENGTHS), packing=True, objective="vanilla"
        ).train()
    headless = make_plain()
    headless.bert.encoder, headless.bert.stack = None, headless.bert.encoder
    with pytest.raises(ValueError, match="a BertForSequenceClassification has no `encoder` or `transformer`"):
        PackedEncoder(headless)


def test_an_attention_with_another_mask_is_refused(make_plain):
    model = make_plain()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="`packing` was True with `attn_implementation` 'flex_attention'"):
        PackedEncoder(model)


def leaky(mask):
    """Every token sees the whole row."""
    return torch.ones_like(mask) if mask.dtype == torch.bool else torch.zeros_like(mask)


def slightly_leaky(mask):
    """One token of the row sees one of another sentence."""
    mask = mask.clone()
    mask[0, 0, 0, -1] = True if mask.dtype == torch.bool else 0.0
    return mask


@pytest.mark.parametrize("fault", [leaky, slightly_leaky])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "attention"), [("bert", "sdpa"), ("bert", "eager"), ("modernbert mean", "sdpa")])
def test_the_check_sees_a_leak_between_sentences(
    make_model, make_examples, make_trainer, monkeypatch, family, attention, precision, fault
):
    """In any precision: where the other sentences of a row change, a sentence's logits do not."""
    family, *pooling = family.split()
    settings = {"classifier_pooling": pooling[0]} if pooling else {}
    model = make_model(family, attention=attention, **settings)
    run = {"packing": True, "objective": "vanilla", "bf16": precision == "bf16", "max_steps": 1, "learning_rate": 0.01}
    make_trainer(model, make_examples(lengths=LENGTHS), **run).train()
    made = PackedEncoder._mask
    monkeypatch.setattr(PackedEncoder, "_mask", lambda *args: fault(made(*args)))
    with pytest.raises(ValueError, match="does not give the same logits"):
        make_trainer(model, make_examples(lengths=LENGTHS), **run).train()


def test_the_check_sees_wrong_positions(make_plain, make_examples, make_trainer, monkeypatch):
    """Positions counted along the row give every sentence but the first other logits, and leak nothing."""
    tell = PackedEncoder._tell

    def told(*args):
        changed = tell(*args)
        if changed is not None:
            changed[1]["position_ids"] = 3 * changed[1]["position_ids"]
        return changed

    monkeypatch.setattr(PackedEncoder, "_tell", told)
    with pytest.raises(ValueError, match="does not give the same logits"):
        make_trainer(
            make_plain("modernbert"), make_examples(lengths=LENGTHS), packing=True, objective="vanilla"
        ).train()


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_packing_trains_in_bfloat16(make_model, make_examples, make_trainer, family):
    """The look at the first batch takes bfloat16's own rounding for the measure; it leaves the model as it was."""
    for seed in range(3):
        model = make_model(family, dropout=0.0, seed=seed)
        trainer = make_trainer(
            model, make_examples(lengths=LENGTHS), packing=True, bf16=True, learning_rate=0.0, max_steps=1, **STRONG
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer.train()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
