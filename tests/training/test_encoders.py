"""Any encoder, unpatched; and refusals of models that cannot be perturbed."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from infobert_fast import InfoBertArguments, InfoBertTrainer
from infobert_fast.training.models.perturbation import WordEmbeddings, positions_of, within_positions

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
def test_a_shift_in_place_is_a_shift_of_the_table(make_model, make_examples, pad, family, attention):
    """One delta for every token of an id: the model whose table holds it gives the same loss, and the same gradient."""
    model = make_model(family, attention=attention, dtype=torch.float64).eval()
    batch = pad(make_examples(lengths=[6, 4]))  # ModernBERT's eager gradient is NaN where a window holds padding alone
    words = WordEmbeddings(model)
    table = torch.randn(60, words.width, dtype=torch.float64) * 0.1
    delta = table[batch["input_ids"]].requires_grad_()
    with words.shifted(delta):
        shifted = model(**batch).loss
    (grad,) = torch.autograd.grad(shifted, delta)
    words.remove()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_input_embeddings().weight += table
    kept = batch["attention_mask"].unsqueeze(-1)
    expected = twin(**batch).loss
    expected.backward()
    torch.testing.assert_close(shifted, expected, atol=1e-12, rtol=0)
    summed = torch.zeros_like(table).index_add_(0, batch["input_ids"].flatten(), (grad * kept).flatten(0, 1))
    torch.testing.assert_close(summed, twin.get_input_embeddings().weight.grad, atol=1e-12, rtol=0)
    assert summed.abs().max() > 1e-4


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
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert states[0].shape == states[-1].shape == (2, 9, 32)
    torch.testing.assert_close(states[0], seen["layer"])
    torch.testing.assert_close(states[-1], seen["last"])


class Marked(transformers.BertForSequenceClassification):
    """A model that remembers its forwards, as batch statistics and counters do."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, *args, **kwargs):
        self.forwards += 1
        return super().forward(*args, **kwargs)


def test_the_first_look_leaves_the_model_as_it_was(make_model, make_examples, make_trainer):
    """Building a trainer does not run the model; a training of two passes counts two forwards, and no hook stays."""
    model = Marked(make_model().config).train()
    trainer = make_trainer(model, make_examples(4), remove_unused_columns=False, **SETTINGS)
    assert model.forwards == 0
    trainer.train()
    assert model.forwards == 2
    assert not model.get_input_embeddings()._forward_hooks


def test_the_first_look_leaves_the_random_state(make_model, make_examples, make_trainer, monkeypatch):
    """The first pass draws the dropout masks that it would draw without it."""
    found = []
    for look in (True, False):
        model = make_model()
        trainer = make_trainer(model, make_examples(4), version=-1, adv_steps=1, adv_init_mag=0.0)
        if not look:
            monkeypatch.setattr("infobert_fast.training.trainer.first_look", lambda *args: 0.0)
        torch.manual_seed(3)
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_roberta_positions_skip_padding(make_model, make_examples, pad):
    """The model numbers positions from its own ids."""
    model = make_model("roberta", dropout=0.0, dtype=torch.float64)
    words, seen = WordEmbeddings(model), []
    model.roberta.embeddings.position_embeddings.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    batch = pad(make_examples(lengths=[5, 3]))
    with words.shifted(words.zeros(batch["input_ids"].shape, torch.device("cpu"))):
        model(**batch)
    assert seen[0].tolist() == [[2, 3, 4, 5, 6], [2, 3, 4, 1, 1]]


# ---- refusals


class Reading(nn.Module):
    """A classifier that reads the ids for more than embedding them, as hash embeddings or adapters by token do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config, self.name_or_path = inner, inner.config, ""
        self.by_token = nn.Embedding(60, 3)

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        out = self.inner(input_ids, attention_mask=attention_mask, **kwargs)
        logits = out.logits + self.by_token(input_ids).mean(1)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


def test_a_model_that_reads_ids_twice_trains(make_model, make_examples, make_trainer, movement):
    """It is called with its own inputs, so that it needs not be refused."""
    model = Reading(make_model())
    moved = movement(model, make_trainer(model, make_examples(4), version=3).train)
    assert moved["by_token.weight"].any()


class Twice(transformers.BertForSequenceClassification):
    """Embeds its ids a second time."""

    def forward(self, input_ids=None, **kwargs):
        self.get_input_embeddings()(input_ids)
        return super().forward(input_ids, **kwargs)


def test_a_model_that_embeds_twice_is_refused(make_model, make_examples, make_trainer):
    trainer = make_trainer(Twice(make_model().config), make_examples(4), version=3, remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"`model` \(Twice\) used its word embeddings 2 times in a forward"):
        trainer.train()


def test_a_model_without_input_embeddings_is_refused(make_examples, make_trainer):
    with pytest.raises(ValueError, match="`model` was a Linear without word embeddings"):
        make_trainer(nn.Linear(2, 2), make_examples(4))


@pytest.mark.parametrize("embeddings", [None, NotImplementedError])
def test_a_model_whose_embeddings_are_nothing_is_refused(embeddings):
    class Silent(nn.Module):
        def get_input_embeddings(self):
            if embeddings is None:
                return None
            raise embeddings

    with pytest.raises(ValueError, match="`model` was a Silent without word embeddings"):
        WordEmbeddings(Silent())


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


class FirstOfACausal(transformers.GPT2PreTrainedModel):
    """A decoder whose head reads the first token, which sees nothing."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = transformers.GPT2Model(config)
        self.head = nn.Linear(config.n_embd, 3)
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        states = self.transformer(input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.head(states.last_hidden_state[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss, logits, states.hidden_states)


def test_causal_models_that_read_the_first_token_are_refused(make_examples, make_trainer):
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=3)
    trainer = make_trainer(FirstOfACausal(config), make_examples(lengths=[6] * 4))
    with pytest.raises(ValueError, match=r"FirstOfACausal.* first token's state, which sees no other"):
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
