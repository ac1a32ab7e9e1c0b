"""Any encoder, unpatched; and refusals of models that cannot be perturbed."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import SequenceClassifierOutput

from infobert_fast import InfoBertArguments, InfoBertTrainer
from infobert_fast.data.collation import WithLengths
from infobert_fast.training.encoder import (
    check_embedded_forward,
    embedded_inputs,
    positions_of,
    within_positions,
    word_embeddings_of,
)

FAMILIES = ["bert", "roberta", "deberta-v2", "electra", "albert", "distilbert", "modernbert"]
SETTINGS = {"version": 6, "adv_steps": 2, "learning_rate": 0.05, "critic_hidden_dim": 20, "alpha": 0.1, "beta": 1e-3}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_train_every_parameter(make_model, make_examples, make_trainer, family):
    model = make_model(family)
    before = copy.deepcopy(dict(model.named_parameters()))
    trainer = make_trainer(model, make_examples(8), **SETTINGS)
    critic_before = copy.deepcopy(model.mi_estimator.state_dict())
    assert trainer.train().global_step == 2
    for name, start in before.items():
        assert not torch.equal(model.get_parameter(name), start), f"{name} did not move"
    # the last bias is added to every score of a bound of differences: all of the critic but it must move
    moved = {
        name for name, value in model.mi_estimator.state_dict().items() if not torch.equal(value, critic_before[name])
    }
    assert {"F_func.0.weight", "F_func.0.bias", "F_func.2.weight"} <= moved
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_embeddings_give_the_same_logits(make_model, make_examples, pad, family, attention):
    model = make_model(family, attention=attention)
    batch = WithLengths(pad)(make_examples(lengths=[9, 4]))
    check_embedded_forward(model, batch, tolerance=1e-6)
    assert model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_embedding_block_and_encoder(make_model, make_examples, pad, family):
    """The first is what the first layer reads; the last is the encoder's output."""
    model = make_model(family, attention="eager").eval()
    batch = pad(make_examples(lengths=[9, 4]))
    encoder = getattr(model, model.base_model_prefix)
    seen = {}

    def before_layer(module, args, kwargs):
        seen.setdefault("layer", args[0] if args else kwargs["hidden_states"])

    for module in encoder.modules():
        if type(module).__name__.endswith(("Layer", "EncoderLayer", "TransformerBlock")):
            module.register_forward_pre_hook(before_layer, with_kwargs=True)
    encoder.register_forward_hook(lambda module, args, out: seen.update(last=out.last_hidden_state))
    inputs = embedded_inputs(model, batch, model.get_input_embeddings()(batch["input_ids"]))
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert states[0].shape == states[-1].shape == (2, 9, 32)
    torch.testing.assert_close(states[0], seen["layer"])
    torch.testing.assert_close(states[-1], seen["last"])


def test_the_check_leaves_mode_and_random_state(make_model, make_examples, pad):
    model = make_model()
    batch = pad(make_examples(2))
    for training in (True, False):
        model.train(training)
        state = torch.get_rng_state()
        check_embedded_forward(model, batch)
        assert model.training is training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_roberta_positions_skip_padding(make_model, make_examples, pad):
    """Given explicitly: from embeddings alone RoBERTa counts padding too."""
    model = make_model("roberta").eval()
    batch = pad(make_examples(lengths=[5, 3]))
    inputs = embedded_inputs(model, batch, model.get_input_embeddings()(batch["input_ids"]))
    assert inputs["position_ids"].tolist() == [[2, 3, 4, 5, 6], [2, 3, 4, 1, 1]]
    assert "input_ids" not in inputs
    given = {**batch, "position_ids": torch.full((2, 5), 4)}
    assert embedded_inputs(model, given, inputs["inputs_embeds"])["position_ids"] is given["position_ids"]


# ---- refusals


class Peeking(nn.Module):
    """A classifier that reads the ids for more than embedding them, as hash embeddings or adapters by token do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config, self.name_or_path = inner, inner.config, ""
        self.by_token = nn.Embedding(60, 3)

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, labels=None, **kwargs):
        out = self.inner(input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs)
        logits = out.logits if input_ids is None else out.logits + self.by_token(input_ids).mean(1)
        return SequenceClassifierOutput(loss=out.loss, logits=logits, hidden_states=out.hidden_states)


def test_a_model_that_reads_ids_twice_is_refused(make_model, make_examples, make_trainer):
    trainer = make_trainer(Peeking(make_model()), make_examples(4), version=3)
    with pytest.raises(ValueError, match=r"`model` \(Peeking\) gives other logits from embeddings than from ids"):
        trainer.train()


def test_a_model_without_input_embeddings_is_refused(make_examples, make_trainer):
    with pytest.raises(ValueError, match="`model` was a Linear without input embeddings"):
        make_trainer(nn.Linear(2, 2), make_examples(4))


@pytest.mark.parametrize("embeddings", [None, NotImplementedError])
def test_a_model_whose_embeddings_are_nothing_is_refused(embeddings):
    class Silent(nn.Module):
        def get_input_embeddings(self):
            if embeddings is None:
                return None
            raise embeddings

    with pytest.raises(ValueError, match="`model` was a Silent without input embeddings"):
        word_embeddings_of(Silent())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", [-1, 6])
def test_half_precision_weights_are_refused(make_model, make_examples, make_trainer, dtype, version):
    with pytest.raises(ValueError, match=f"holds its word embeddings in {dtype}, .*dtype=torch.float32"):
        make_trainer(make_model(dtype=dtype), make_examples(4), version=version)


def test_left_padding_is_refused(make_model, make_examples, make_trainer):
    def pad_left(examples):
        longest = max(len(example["input_ids"]) for example in examples)
        missing = [longest - len(example["input_ids"]) for example in examples]
        return {
            "input_ids": torch.tensor([[1] * m + e["input_ids"] for e, m in zip(examples, missing, strict=True)]),
            "attention_mask": torch.tensor([[0] * m + [1] * (longest - m) for m in missing]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    # The first batch needs no padding: the second is what must be refused.
    examples = make_examples(lengths=[4] * 4 + [3, 5, 3, 5])
    trainer = make_trainer(
        make_model(),
        examples,
        data_collator=pad_left,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
    )
    with pytest.raises(ValueError, match=r"begins with padding.*set tokenizer.padding_side = 'right'"):
        trainer.train()


def test_causal_models_are_refused(make_examples, make_trainer):
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=3)
    config.pad_token_id = 1
    model = transformers.GPT2ForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"GPT2ForSequenceClassification.* is causal: its first token sees nothing"):
        make_trainer(model, make_examples(lengths=[6] * 4))
    model.config._attn_implementation = "another"  # what cannot run before the first step is looked at there
    trainer = make_trainer(model, make_examples(lengths=[6] * 4))
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"is causal"):
        trainer.train()


def test_encoders_with_a_decoder_are_refused(make_examples, make_trainer):
    config = transformers.BartConfig(vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, num_labels=3,
                                     encoder_attention_heads=2, decoder_attention_heads=2)  # fmt: skip
    with pytest.raises(ValueError, match=r"BartForSequenceClassification\) has a decoder"):
        make_trainer(transformers.BartForSequenceClassification(config), make_examples(lengths=[6] * 4))


def test_stock_arguments_are_refused(make_model, tmp_path):
    with pytest.raises(TypeError, match="`args` was a TrainingArguments; it must be an InfoBertArguments"):
        InfoBertTrainer(make_model(), transformers.TrainingArguments(str(tmp_path)))
    with pytest.raises(TypeError, match="`args` was a NoneType"):
        InfoBertTrainer(make_model())


def test_several_gpus_in_one_process_are_refused(monkeypatch, make_model, make_examples, make_trainer):
    monkeypatch.setattr(InfoBertArguments, "n_gpu", property(lambda self: 4))
    with pytest.raises(ValueError, match=r"4 GPUs are visible to one process.*torchrun --nproc_per_node 4"):
        make_trainer(make_model(), make_examples(4))


def test_fsdp_is_refused(monkeypatch, make_model, make_examples, make_trainer):
    trainer = make_trainer(make_model(), make_examples(4))
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match=r"`fsdp` is set.*use DDP or DeepSpeed ZeRO-2"):
        InfoBertTrainer._refuse_unsupported_engines(trainer)


class _Reads(TorchDispatchMode):
    """How often a value is read on the host."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += torch.Tag.data_dependent_output in function.tags
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("lengths", [[14, 9, 3], [14, 14, 14]], ids=["padded", "full"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert", "distilbert", "modernbert"])
def test_sdpa_masks_made_on_the_host_are_the_encoders_own(make_model, make_examples, pad, gradients, family, lengths):
    """To the bit, gradients included, and without the one value that transformers reads on the host a forward."""
    batch = pad(make_examples(lengths=lengths))
    found, reads = [], []
    for known in ({}, {"lengths": lengths}):
        model = make_model(family, dropout=0.0)
        embeddings = word_embeddings_of(model)(batch["input_ids"])
        with _Reads() as mode:
            outputs = model(**embedded_inputs(model, {**batch, **known}, embeddings))
        outputs.loss.backward()
        found.append([outputs.logits, *gradients(model).values()])
        reads.append(mode.count)
    assert reads[0] > 0
    assert reads[1] == 0
    for own, ours in zip(*found, strict=True):
        assert torch.equal(own, ours)
    assert any(bool(gradient.any()) for gradient in found[0][1:])


@pytest.mark.parametrize(("kind", "reach"), [("roberta", 38), ("bert", 40), ("distilbert", 40), ("modernbert", None)])
def test_positions_are_counted_as_the_model_counts_them(kind, reach):
    """A text of that length runs, one of a token more does not."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 1}
    sizes |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8} if kind == "distilbert" else {}
    config = AutoConfig.for_model(kind, **sizes, intermediate_size=8, max_position_embeddings=40)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert positions_of(model) == reach
    assert within_positions(model, 64) == (reach or 64)
    assert within_positions(model, 16) == 16
    ids = torch.full((1, reach or 64), 5)
    assert torch.isfinite(model(input_ids=ids).logits).all()
    if reach is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, reach + 1), 5))
