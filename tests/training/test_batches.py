"""Batches of different numbers of sentences: the gradient is the joint batch's, and a run resumes in its order."""

import copy

import datasets
import pytest
import torch
from transformers import TrainerCallback

from infobert_fast import reference

STANDARD = {"objective": "vanilla"}
LENGTHS = [3, 3, 4, 4, 4, 5, 6, 7, 9, 11]


class Seen(TrainerCallback):
    """The sentences of each micro-batch, read where the model is called; the first two calls are the first look."""

    def __init__(self, model):
        self.batches, self.looks = [], 2
        model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        if module.training and not self.looks:
            self.batches.append([*kwargs["labels"].tolist(), tuple(kwargs["input_ids"].shape)])
        self.looks -= bool(module.training and self.looks)


@pytest.fixture
def numbered(make_examples):
    """Examples whose label is their number."""

    def make(lengths=LENGTHS):
        return [{**example, "labels": i} for i, example in enumerate(make_examples(lengths=lengths))]

    return make


@pytest.mark.parametrize("version", [-1, 3])
def test_gradient_of_a_step_is_the_mean_over_its_sentences(
    make_model, make_examples, make_trainer, pad, movement, assert_close, version
):
    """All batches of the epoch in one step: by hand, each weighs as many sentences as it holds, in every term."""
    settings = {"version": version, "adv_steps": 1, "adv_init_mag": 0.0, "beta": 0.05}
    settings |= {"batch_tokens": 14, "train_sampling_strategy": "random"}
    model = make_model(dropout=0.0, dtype=torch.float64)
    twin, examples = copy.deepcopy(model), make_examples(lengths=LENGTHS)
    trainer = make_trainer(model, examples, gradient_accumulation_steps=100, **settings)
    found = movement(model, trainer.train)
    assert trainer.state.global_step == 1
    batches = list(trainer.get_train_dataloader().batch_sampler)
    assert len({len(batch) for batch in batches}) > 1
    for batch in batches:
        collated = pad([examples[i] for i in batch])
        out = twin(**collated, output_hidden_states=True)
        loss = out.loss
        if version == 3:
            loss = loss + 0.05 * reference.club(out.hidden_states[0], collated["attention_mask"])
        (loss * len(batch) / len(examples)).backward()
    assert_close(found, {name: p.grad for name, p in twin.named_parameters()}, 1e-12)
    if version == -1:
        joint = make_model(dropout=0.0, dtype=torch.float64)
        loss = joint(**pad(examples)).loss
        loss.backward()
        assert_close(found, {name: p.grad for name, p in joint.named_parameters()}, 1e-12)
        (line,) = [line for line in trainer.state.log_history if "loss" in line]
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert line["task_loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_a_ragged_last_batch_weighs_what_it_holds(make_model, make_examples, make_trainer, pad, movement, assert_close):
    """Ordinary batches too: 4 + 4 + 2 sentences in one step are ten."""
    model = make_model(dropout=0.0, dtype=torch.float64)
    trainer = make_trainer(model, make_examples(10), gradient_accumulation_steps=3, **STANDARD)
    found = movement(model, trainer.train)
    joint = make_model(dropout=0.0, dtype=torch.float64)
    joint(**pad(make_examples(10))).loss.backward()
    assert_close(found, {name: p.grad for name, p in joint.named_parameters()}, 1e-12)


def test_transformers_own_uneven_batches_are_weighted_too(
    make_model, make_examples, make_trainer, pad, movement, assert_close
):
    """`batch_rebalance` cuts an optimisation step's sentences into micro-batches of different sizes."""
    examples = make_examples(lengths=[3, 3, 3, 3, 20, 20, 3, 3])
    model = make_model(dropout=0.0, dtype=torch.float64)
    seen = Seen(model)
    trainer = make_trainer(
        model,
        examples,
        train_sampling_strategy="batch_rebalance",
        gradient_accumulation_steps=2,
        callbacks=[seen],
        **STANDARD,
    )
    found = movement(model, trainer.train)
    assert sorted(shape[0] for *_, shape in seen.batches[-2:]) == [2, 6]
    joint = make_model(dropout=0.0, dtype=torch.float64)
    joint(**pad(examples)).loss.backward()
    assert_close(found, {name: p.grad for name, p in joint.named_parameters()}, 1e-12)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("packing", [False, True])
def test_batches_from_a_worker_process(make_model, make_examples, make_trainer, packing, workers):
    trainer = make_trainer(
        make_model(),
        make_examples(lengths=LENGTHS),
        batch_tokens=14,
        train_sampling_strategy="random",
        packing=packing,
        dataloader_num_workers=workers,
        learning_rate=0.01,
        **STANDARD,
    )
    trainer.train()
    assert trainer.state.global_step == len(trainer.get_train_dataloader())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_stopped_in_an_epoch_goes_on_in_the_same_order(
    tmp_path, make_model, numbered, make_trainer, accumulation
):
    settings = {"batch_tokens": 12, "num_train_epochs": 3, "learning_rate": 0.01, **STANDARD}
    settings |= {"gradient_accumulation_steps": accumulation, "train_sampling_strategy": "random"}

    def run(**changes):
        model = make_model(num_labels=len(LENGTHS))
        seen = Seen(model)
        trainer = make_trainer(model, numbered(), callbacks=[seen], **{**settings, **changes})
        trainer.train(resume_from_checkpoint=changes.get("resume_from_checkpoint"))
        return trainer, seen.batches

    whole, batches = run(output_dir=str(tmp_path / "a"), save_strategy="steps", save_steps=1)
    epoch = len(batches) // 3
    assert batches[:epoch] != batches[epoch : 2 * epoch]
    steps = whole.state.global_step
    for step in (1, steps // 3, steps // 2):
        checkpoint = str(tmp_path / "a" / f"checkpoint-{step}")
        resumed, rest = run(output_dir=str(tmp_path / "b"), resume_from_checkpoint=checkpoint)
        assert resumed.state.global_step == steps
        assert rest[1 - len(rest) :] == batches[1 - len(rest) :]  # the first forward checks the model
        assert len(rest) < len(batches)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_length_grouping_reads_its_column_once(make_model, make_examples, make_trainer):
    examples = make_examples(40, lengths=list(range(3, 23)) * 2)
    rows = {key: [example[key] for example in examples] for key in examples[0]}
    dataset = datasets.Dataset.from_dict({**rows, "length": [len(ids) for ids in rows["input_ids"]]})
    trainer = make_trainer(
        make_model(), dataset, train_sampling_strategy="group_by_length", learning_rate=0.01, **STANDARD
    )
    sampler = trainer._get_train_sampler()
    assert type(sampler.sampler.lengths) is list
    assert sorted(sampler) == list(range(40))
    trainer.train()
    assert trainer.state.global_step == 10


def test_batches_of_a_dataset_with_a_length_column(make_model, make_examples, make_trainer):
    examples = make_examples(lengths=LENGTHS)
    rows = {key: [example[key] for example in examples] for key in examples[0]}
    dataset = datasets.Dataset.from_dict({**rows, "length": LENGTHS})
    model = make_model()
    seen = Seen(model)
    trainer = make_trainer(
        model,
        dataset,
        batch_tokens=14,
        train_sampling_strategy="random",
        learning_rate=0.01,
        callbacks=[seen],
        **STANDARD,
    )
    trainer.train()
    for *_, (sentences, longest) in seen.batches:
        assert sentences * longest <= 14


def test_an_iterable_dataset_has_no_lengths(make_model, make_trainer):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield {"input_ids": [1], "labels": 0}

    with pytest.raises(ValueError, match="`batch_tokens` was set for an iterable `train_dataset`"):
        make_trainer(make_model(), Endless(), batch_tokens=10, max_steps=1, train_sampling_strategy="random")
