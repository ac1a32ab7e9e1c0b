"""Losses, heads and optimisers of users, through the Trainer's own hooks: the gradients are a plain loop's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from infobert_fast import InfoBertTrainer
from infobert_fast.training.models.critic import attach_critic

STANDARD = {"version": -1, "adv_steps": 1, "adv_init_mag": 0.0}
LENGTHS = [3, 9, 5, 7, 4, 8, 6, 10]


def weighted(logits, labels):
    """A loss that is none of the model's own."""
    return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 3.0, 0.5], dtype=logits.dtype))


@pytest.fixture
def plain(pad):
    """The gradient of a loss of logits and labels on one joint batch, by a plain loop."""

    def gradient(model, examples, loss):
        twin, batch = copy.deepcopy(model), pad(examples)
        labels = batch.pop("labels")
        loss(twin(**batch).logits, labels).backward()
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in twin.named_parameters()}

    return gradient


@pytest.fixture
def small(make_model):
    return make_model(dropout=0.0, dtype=torch.float64, num_hidden_layers=1)


def test_a_loss_function_counts_its_own_micro_batch(
    small, make_examples, make_arguments, pad, plain, movement, assert_close
):
    """``compute_loss_func`` gets that count and returns a mean; accumulation is divided once: three and one of four."""
    examples, counts = make_examples(lengths=LENGTHS[:4]), []
    examples[1]["labels"] = -100  # is no label, and counts as none

    def loss(outputs, labels, num_items_in_batch=None):
        counts.append(int(num_items_in_batch))
        return F.cross_entropy(outputs.logits, labels, reduction="sum", ignore_index=-100) / num_items_in_batch

    def mean(logits, labels):  # of the two micro-batches' means, each with the weight of its sentences
        return 3 / 4 * F.cross_entropy(logits[:3], labels[:3]) + 1 / 4 * F.cross_entropy(logits[3:], labels[3:])

    expected = plain(small, examples, mean)
    args = make_arguments(**STANDARD, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    trainer = InfoBertTrainer(small, args, train_dataset=examples, data_collator=pad, compute_loss_func=loss)
    assert_close(movement(small, trainer.train), expected, 1e-12)
    assert counts[-2:] == [2, 1]


@pytest.mark.parametrize("returns", ["loss", "loss and outputs"])
def test_an_overridden_loss(small, make_examples, make_arguments, pad, plain, movement, assert_close, returns):
    """It may return the loss alone, and reads ``input_ids`` of the batch as ever."""

    class Own(InfoBertTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = weighted(outputs.logits, labels) + 0.1 * (inputs["input_ids"] > 30).double().mean()
            return (loss, outputs) if returns != "loss" else loss

    examples = make_examples(lengths=LENGTHS)
    expected = plain(small, examples, weighted)
    args = make_arguments(**STANDARD, per_device_train_batch_size=8)
    trainer = Own(small, args, train_dataset=examples, data_collator=pad)
    assert_close(movement(small, trainer.train), expected, 1e-12)


class MaskedMean(BertPreTrainedModel):
    """A head that counts tokens by the mask, and a buffer that counts forwards."""

    def __init__(self, config):
        super().__init__(config)
        self.bert, self.out = BertModel(config), torch.nn.Linear(config.hidden_size, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        self.calls += 1
        hidden = self.bert(input_ids, attention_mask=attention_mask, **kwargs)
        tokens = attention_mask.to(hidden.last_hidden_state.dtype).flatten(1).sum(1, keepdim=True)
        logits = self.out(hidden.last_hidden_state[:, 0] * tokens / 10)
        return SequenceClassifierOutput(F.cross_entropy(logits, labels) if labels is not None else None, logits,
            hidden.hidden_states)  # fmt: skip


def test_a_head_that_reads_the_mask(make_examples, make_trainer, plain, movement, assert_close):
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model, examples = MaskedMean(config).double(), make_examples(lengths=LENGTHS)
    expected = plain(model, examples, F.cross_entropy)
    trainer = make_trainer(model, examples, per_device_train_batch_size=8, **STANDARD)
    assert model.calls == 0  # building a trainer does not run the model
    assert_close(movement(model, trainer.train), expected, 1e-12)
    assert model.calls == 1  # and the look at the first batch leaves no mark


@pytest.mark.parametrize("objective", ["smart", "r3f", "rdrop"])
def test_several_labels_that_only_the_labels_tell(small, make_examples, make_arguments, pad, objective):
    """With ``problem_type`` unset, as transformers tells them: labels of floating point."""
    rows = [{**e, "labels": [float(e["labels"] == k) for k in range(3)]} for e in make_examples(4)]

    def collate(examples):
        batch = pad([{**e, "labels": 0} for e in examples])
        return {**batch, "labels": torch.tensor([e["labels"] for e in examples], dtype=torch.float64)}

    args = make_arguments(objective=objective)
    assert small.config.problem_type is None
    with pytest.raises(ValueError, match="the model has several labels at once"):
        InfoBertTrainer(small, args, train_dataset=rows, data_collator=collate).train()


# ---- optimisers


def test_an_optimiser_without_the_critic_is_refused(small, make_examples, make_arguments, pad):
    class Own(InfoBertTrainer):
        def create_optimizer(self, *args, **kwargs):
            named = [p for n, p in self.model.named_parameters() if "mi_estimator" not in n]
            self.optimizer = torch.optim.AdamW(named, lr=1e-2)
            return self.optimizer

    settings = {"train_dataset": make_examples(4), "data_collator": pad}
    given = torch.optim.AdamW(small.parameters(), lr=1e-2)
    for trainer in (
        InfoBertTrainer(small, make_arguments(critic_hidden_dim=20), optimizers=(given, None), **settings),
        Own(small, make_arguments(critic_hidden_dim=20), **settings),
    ):
        with pytest.raises(ValueError, match=r"`optimizers` holds \d+ parameters, and not mi_estimator\.F_func\.0\.w"):
            trainer.train()


def test_an_optimiser_with_the_critic_trains_it(small, make_examples, make_arguments, pad):
    """Built from a model that has its critic; frozen parameters may be left out."""
    attach_critic(small, 20)
    small.bert.embeddings.requires_grad_(False)
    given = torch.optim.AdamW([p for p in small.parameters() if p.requires_grad], lr=1e-2)
    before = copy.deepcopy(small.state_dict())
    args = make_arguments(critic_hidden_dim=20, adv_steps=1)
    InfoBertTrainer(small, args, train_dataset=make_examples(4), data_collator=pad, optimizers=(given, None)).train()
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("bert.embeddings"), name


def test_states_are_asked_for_where_they_are_read(make_model, make_examples, make_trainer):
    """Standard training holds no hidden states; nor do the objectives that compare logits."""
    for settings, asks in (({"objective": "vanilla"}, False), ({"objective": "r3f"}, False), ({"version": 3}, True)):
        model, asked = make_model(num_hidden_layers=1), []
        trainer = make_trainer(model, make_examples(4), learning_rate=0.01, **settings)
        assert isinstance(model, BertForSequenceClassification)
        model.register_forward_hook(
            lambda module, args, kwargs, out, asked=asked: asked.append(out.hidden_states is not None),
            with_kwargs=True,
        )
        trainer.train()
        assert asked[0]  # in the look at the first batch
        assert asked[-1] == asks
