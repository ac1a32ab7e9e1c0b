"""The trainer around the step: accumulation, logs, collation, seeds, precision, checkpointing of activations."""

import copy
import math

import pytest
import torch
import transformers
from transformers import TrainerCallback

from infobert_fast import InfoBertTrainer, functional
from infobert_fast.data.collation import WithLengths
from infobert_fast.training.steps.infobert import step_seed
from infobert_fast.training.termlog import TermLog

# Magnitudes at which every term shows in the gradients.
STRONG = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_lr": 0.3, "adv_init_mag": 0.5, "critic_hidden_dim": 20}
STANDARD = {"version": -1, "adv_steps": 1, "adv_init_mag": 0.0}


class GradientRecorder(TrainerCallback):
    """Gradients as they stand just before each optimiser step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters()})


@pytest.fixture
def literal_mean(literal_step, make_arguments, pad, gradients):
    """The mean over micro-batches of literal gradients, drawn as the trainer draws at its optimisation step 0."""

    def compute(model, groups, **settings):
        args = make_arguments(**settings)
        names = "version alpha beta cl ch adv_steps adv_lr adv_max_norm norm_type negatives"
        published = {name: getattr(args, name) for name in names.split()}
        for micro, group in enumerate(groups):
            batch = pad(group)
            embeddings = model.get_input_embeddings()(batch["input_ids"])
            seed = step_seed(args.seed, 0, 0, micro)
            delta = functional.freelb_init(
                embeddings, batch["attention_mask"], args.adv_init_mag, args.norm_type, seed=seed
            )
            literal_step(
                model,
                batch,
                delta,
                published,
                critic=getattr(model, "mi_estimator", None),
                shuffle_seed=args.seed,
                scale=1 / len(groups),
            )
        return gradients(model)

    return compute


def chunks(examples, size):
    return [examples[i : i + size] for i in range(0, len(examples), size)]


# ---- accumulation


@pytest.mark.parametrize("adv_steps", [1, 3])
def test_task_gradient_is_that_of_the_joint_batch(
    make_model, make_examples, make_trainer, pad, movement, assert_close, adv_steps
):
    """1 x 8 equals 4 x 2 for the task loss; stock transformers gives four times as much."""
    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        model = make_model(dropout=0.0, dtype=torch.float64)
        settings = {**STRONG, **STANDARD, "adv_steps": adv_steps}
        trainer = make_trainer(
            model,
            make_examples(8),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **settings,
        )
        found.append(movement(model, trainer.train))
    assert_close(found[1], found[0], 1e-12)
    plain = make_model(dropout=0.0, dtype=torch.float64)
    if adv_steps == 1:
        plain(**pad(make_examples(8))).loss.backward()
        assert_close(found[0], {name: p.grad for name, p in plain.named_parameters()}, 1e-12)


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4)])
def test_every_term_is_divided_by_accumulation(
    make_model,
    make_examples,
    make_trainer,
    make_critic,
    movement,
    assert_close,
    literal_mean,
    version,
    size,
    accumulation,
):
    """The step's gradient is the mean of its micro-batches' literal gradients, the random start included."""
    settings = {**STRONG, "version": version, "adv_steps": 2}
    model = make_model(dropout=0.0, dtype=torch.float64)
    if version > 3:
        make_critic(model)
    twin = copy.deepcopy(model)
    trainer = make_trainer(
        model,
        make_examples(8),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **settings,
    )
    found = movement(model, trainer.train)
    assert_close(found, literal_mean(twin, chunks(make_examples(8), size), **settings), 1e-9)


@pytest.mark.parametrize("version", [-1, 6])
def test_a_shorter_last_group_is_divided_by_its_own_length(
    make_model, make_examples, make_trainer, make_critic, assert_close, literal_mean, version
):
    """Six micro-batches in groups of four: the second step is the mean of two."""
    settings = {**STRONG, "version": version, "adv_steps": 2, "adv_init_mag": 0.0}
    model = make_model(dropout=0.0, dtype=torch.float64)
    if version == 6:
        make_critic(model)
    twins = [copy.deepcopy(model) for _ in range(2)]
    recorder, examples = GradientRecorder(), make_examples(12)
    make_trainer(
        model,
        examples,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=0.0,
        callbacks=[recorder],
        **settings,
    ).train()
    assert len(recorder.steps) == 2
    assert_close(recorder.steps[0], literal_mean(twins[0], chunks(examples[:8], 2), **settings), 1e-9)
    assert_close(recorder.steps[1], literal_mean(twins[1], chunks(examples[8:], 2), **settings), 1e-9)


def test_gradient_is_the_literal_one_with_dropout_on(
    make_model, make_examples, make_trainer, make_critic, assert_close, literal_mean
):
    """The whole trainer against the literal step: same masks, since both start from the same random state."""
    settings = {**STRONG, "version": 6, "adv_steps": 3}
    model = make_model(dtype=torch.float64)
    make_critic(model)
    twin = copy.deepcopy(model)

    class Reseed(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            torch.manual_seed(11)

    recorder = GradientRecorder()
    trainer = make_trainer(
        model,
        make_examples(8),
        gradient_accumulation_steps=2,
        learning_rate=0.0,
        callbacks=[recorder, Reseed()],
        **settings,
    )
    trainer.train()
    torch.manual_seed(11)
    assert_close(recorder.steps[0], literal_mean(twin, chunks(make_examples(8), 4), **settings), 1e-9)


# ---- logs


def training_logs(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_logged_loss_is_the_sum_of_the_logged_terms(make_model, make_examples, make_trainer, accumulation):
    trainer = make_trainer(
        make_model(), make_examples(16), gradient_accumulation_steps=accumulation, learning_rate=0.01, **STRONG
    )
    trainer.train()
    lines = training_logs(trainer)
    assert len(lines) == 4 // accumulation
    for line in lines:
        total = line["task_loss"] + 0.05 * line["ib_upper_bound"] - 0.3 * line["afr_lower_bound"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        for name in ("task_loss", "ib_upper_bound", "afr_lower_bound"):
            assert line[f"{name}_min"] <= line[name] <= line[f"{name}_max"]
        assert (line["task_loss_min"] < line["task_loss_max"]) is (accumulation == 2)


@pytest.mark.parametrize(
    ("version", "terms"),
    [(-1, []), (3, ["ib_upper_bound"]), (4, ["afr_lower_bound"]), (6, ["ib_upper_bound", "afr_lower_bound"])],
)
def test_logs_name_the_terms_of_the_version(make_model, make_examples, make_trainer, version, terms):
    trainer = make_trainer(make_model(), make_examples(4), version=version, learning_rate=0.0)
    trainer.train()
    (line,) = training_logs(trainer)
    assert [name for name in line if name.endswith("_bound")] == terms


def test_evaluation_leaves_the_terms_alone(make_model, make_examples, make_trainer):
    """Terms of the steps before an evaluation are still in the next log line, and evaluation logs none."""
    lines = []
    for strategy in ("no", "steps"):
        trainer = make_trainer(
            make_model(dropout=0.0),  # an evaluation draws the order of its batches from the generator dropout uses
            make_examples(16),
            eval_dataset=make_examples(4, seed=5),
            eval_strategy=strategy,
            eval_steps=1,
            logging_steps=2,
            learning_rate=0.01,
            **STRONG,
        )
        trainer.train()
        lines.append(
            [{k: v for k, v in line.items() if "bound" in k or "loss" in k} for line in training_logs(trainer)]
        )
        evaluated = [line for line in trainer.state.log_history if "eval_loss" in line]
        assert not any("task_loss" in line for line in evaluated)
        assert len(evaluated) == (4 if strategy == "steps" else 0)
    assert lines[0] == lines[1]


def test_term_log_means_and_ranges():
    log = TermLog()
    assert log.read(lambda rows: rows) == {}
    for a, b in ((1.0, -4.0), (2.0, 0.0), (6.0, 1.0)):
        log.add({"loss": torch.tensor(9.0), "a": torch.tensor(a), "b": torch.tensor(b)})
    assert log.read(lambda rows: rows) == {"a": 3, "a_min": 1, "a_max": 6, "b": -1, "b_min": -4, "b_max": 1}
    assert log.read(lambda rows: rows) == {}
    log.add({"a": torch.tensor(5.0)})
    # a second rank that saw 7 on average, between -1 and 11
    other = torch.tensor([[[7.0], [1.0], [-1.0], [11.0]]], dtype=torch.float64)
    assert log.read(lambda rows: torch.cat([rows, other])) == {"a": 6, "a_min": -1, "a_max": 11}
    log.add({"a": torch.tensor(5.0)}, weight=3)
    log.add({"a": torch.tensor(1.0)}, weight=1)
    assert log.read(lambda rows: rows)["a"] == 4


# ---- collation


def test_a_tokenizers_own_collator_works(tmp_path, make_model, make_examples, make_trainer):
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[CLS]", "[PAD]", "[SEP]", "[UNK]", *map(str, range(50))]))
    tokenizer = transformers.BertTokenizer(str(words))
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = make_trainer(make_model(), make_examples(8), data_collator=collator, learning_rate=0.01, **STRONG)
    assert trainer.train().global_step == 2


# ---- the adversary's schedule and seeds


def test_the_adversary_starts_when_told(make_model, make_examples, make_trainer):
    model, passes = make_model(), []
    trainer = make_trainer(
        model, make_examples(16), adv_start_step=2, adv_steps=3, learning_rate=0.01, callbacks=[], **STRONG
    )
    model.register_forward_hook(lambda *_: passes.append(trainer.state.global_step if model.training else None))
    trainer.train()
    counts = [passes.count(step) for step in range(4)]
    assert counts == [3, 1, 3, 3]  # with the two forwards of the look at the first batch
    assert all("afr_lower_bound" in line for line in training_logs(trainer))  # the regularisers act from the start


def test_steps_before_the_start_are_standard(make_model, make_examples, make_trainer, movement, assert_close):
    found = []
    for settings in ({"adv_start_step": 1}, {"adv_steps": 1, "adv_init_mag": 0.0}):
        model = make_model(dropout=0.0)
        trainer = make_trainer(model, make_examples(4), **{**STRONG, "version": 3, **settings})
        found.append(movement(model, trainer.train))
    assert_close(found[0], found[1], 0)


def test_runs_repeat_from_their_seed(make_model, make_examples, make_trainer, movement, assert_close):
    """Same seed, same run; another seed, another perturbation, dropout being off."""
    found = []
    for seed in (1, 1, 2):
        model = make_model(dropout=0.0)
        trainer = make_trainer(model, make_examples(8), seed=seed, **{**STRONG, "version": 3})
        found.append(movement(model, trainer.train))
    assert_close(found[1], found[0], 0)
    assert any(not torch.equal(found[2][name], found[0][name]) for name in found[0])


# ---- precision, activation checkpointing, label smoothing


@pytest.mark.parametrize("version", [1, 6])
def test_bf16_autocast_keeps_the_perturbation_in_float32(make_model, make_examples, make_trainer, version):
    model, seen = make_model(), {"in": set(), "inside": set()}
    model.bert.embeddings.register_forward_hook(
        lambda module, args, out: seen["in"].add(out.dtype) if module.training else None
    )
    trainer = make_trainer(
        model,
        make_examples(8),
        bf16=True,
        eval_dataset=make_examples(2),
        learning_rate=0.01,
        **{**STRONG, "version": version},
    )
    model.bert.encoder.layer[0].attention.self.query.register_forward_hook(
        lambda module, args, out: seen["inside"].add(out.dtype)
    )
    trainer.train()
    assert seen == {"in": {torch.float32}, "inside": {torch.bfloat16}}
    assert all(math.isfinite(value) for line in training_logs(trainer) for value in line.values())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert math.isfinite(trainer.evaluate()["eval_loss"])


def test_activation_checkpointing_gives_the_same_gradients(
    make_model, make_examples, make_trainer, make_critic, movement, assert_close
):
    """The graph is traversed twice and recomputed, with dropout on: same masks in the recomputation."""
    found = []
    for settings in ({}, {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}):
        model = make_model(dtype=torch.float64)
        make_critic(model)
        trainer = make_trainer(model, make_examples(4), **STRONG, **settings)
        found.append(movement(model, trainer.train))
    assert_close(found[1], found[0], 1e-12)


def test_label_smoothing_reaches_the_task_loss(make_model, make_examples, make_trainer):
    lines = []
    for factor in (0.0, 0.3):
        trainer = make_trainer(
            make_model(dropout=0.0), make_examples(4), label_smoothing_factor=factor, **{**STRONG, **STANDARD}
        )
        trainer.train()
        lines.append(training_logs(trainer)[0]["task_loss"])
    model, batch = make_model(dropout=0.0), WithLengths(trainer.data_collator.collator)(make_examples(4))
    log_probabilities = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    nll = -log_probabilities.gather(1, batch["labels"].unsqueeze(1)).mean().item()
    smooth = -log_probabilities.mean().item()
    assert lines == pytest.approx([nll, 0.7 * nll + 0.3 * smooth], rel=1e-5)


# ---- evaluation, prediction, model_init


def test_the_model_never_sees_the_lengths(make_model, make_examples, make_trainer):
    """A forward without ``**kwargs`` would refuse them, in training, evaluation and prediction."""
    model, seen = make_model(), set()
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    trainer = make_trainer(model, make_examples(4), eval_dataset=make_examples(2), learning_rate=0.01)
    trainer.train()
    trainer.evaluate()
    trainer.predict(make_examples(2))
    assert {"input_ids", "attention_mask", "labels"} <= seen
    assert "lengths" not in seen


def test_the_loss_is_not_taken_for_one_that_counts_items(make_model, make_examples, make_trainer):
    """The stock conclusion from ``**kwargs`` in an encoder's forward, which multiplies its loss."""
    assert make_trainer(make_model(), make_examples(4)).model_accepts_loss_kwargs is False


def test_evaluation_and_prediction(make_model, make_examples, make_trainer):
    trainer = make_trainer(
        make_model(),
        make_examples(4),
        eval_dataset=make_examples(6, seed=1),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        **STRONG,
    )
    metrics = trainer.evaluate()
    predicted = trainer.predict(make_examples(6, seed=1))
    assert predicted.predictions.shape == (6, 3)
    assert metrics["eval_accuracy"] == predicted.metrics["test_accuracy"]
    assert metrics["eval_loss"] == pytest.approx(predicted.metrics["test_loss"])


def test_model_init(make_model, make_examples, make_trainer):
    made = []

    def model_init():
        made.append(make_model())
        return made[-1]

    trainer = make_trainer(None, make_examples(8), model_init=model_init, learning_rate=0.01, **STRONG)
    trainer.train()
    assert trainer.model is made[-1]
    assert trainer.model.mi_estimator.F_func[0].out_features == 20
    assert all("afr_lower_bound" in line for line in training_logs(trainer))


@pytest.mark.parametrize("version", [0, 1])
def test_the_learned_bound_learns(make_model, make_examples, make_trainer, version):
    """Its own optimiser moves it, and it belongs neither to the model nor to the model's optimiser."""
    model = make_model()
    trainer = make_trainer(
        model, make_examples(8), learning_rate=0.01, ib_max_length=12, **{**STRONG, "version": version}
    )
    before = {}

    class Noted(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            before.update(copy.deepcopy(trainer._club.state_dict()))

    trainer.add_callback(Noted())
    trainer.train()
    club = trainer._club
    assert all(not torch.equal(before[name], value) for name, value in club.state_dict().items())
    assert not {id(p) for p in club.parameters()} & {id(p) for p in model.parameters()}
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters()}


def test_a_batch_longer_than_the_learned_bound_is_refused(make_model, make_examples, make_trainer):
    trainer = make_trainer(make_model(), make_examples(lengths=[9, 9]), ib_max_length=8, **{**STRONG, "version": 0})
    with pytest.raises(ValueError, match="was 8; a batch is 9 tokens long: raise it"):
        trainer.train()


def test_the_trainer_is_a_trainer(make_model, make_examples, make_trainer):
    trainer = make_trainer(make_model(), make_examples(4))
    assert isinstance(trainer, transformers.Trainer)
    assert type(trainer) is InfoBertTrainer


# ---- on a device


@pytest.mark.gpu
@pytest.mark.parametrize("version", [-1, 3, 6])
@pytest.mark.parametrize("negatives", ["chunk", "batch"])
def test_nothing_waits_for_the_device(monkeypatch, make_model, make_examples, make_trainer, version, negatives):
    """From the batch on the device to the end of the micro-step; sdpa, whose mask is made from the lengths (for that of
    eager attention transformers 5.17 copies a number to the device).
    """
    model = make_model()
    trainer = make_trainer(
        model,
        make_examples(16),
        use_cpu=False,
        learning_rate=0.01,
        negatives=negatives,
        **{**STRONG, "version": version},
    )
    prepare, inner = trainer._prepare_inputs, trainer.training_step
    steps = []

    def prepared(inputs):
        out = prepare(inputs)
        if steps:  # the first micro-step also checks the model
            torch.cuda.set_sync_debug_mode("error")
        return out

    def step(*args, **kwargs):
        try:
            return inner(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            steps.append(1)

    monkeypatch.setattr(trainer, "_prepare_inputs", prepared)
    monkeypatch.setattr(trainer, "training_step", step)
    trainer.train()
    assert len(steps) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_repeats_on_the_device(make_model, make_examples, make_trainer, attention):
    """With an adversary that never moves, the three passes of a step have one loss, and the next step another."""
    model, losses = make_model(attention=attention), []
    model.register_forward_hook(lambda module, args, out: losses.append(out.loss.item()) if module.training else None)
    settings = {**STRONG, "adv_lr": 0.0, "adv_init_mag": 0.0, "adv_steps": 3, "learning_rate": 0.0}
    examples = make_examples(4)
    make_trainer(model, examples + examples, use_cpu=False, **settings).train()
    assert len(losses) == 6
    assert len(set(losses[:3])) == len(set(losses[3:])) == 1
    assert losses[0] != losses[3]


@pytest.mark.gpu
def test_the_learned_bounds_steps_are_counted_on_the_host_after_a_checkpoint(
    make_model, make_examples, make_trainer, tmp_path
):
    """A count on the device would be read by every step of Adam."""
    trainer = make_trainer(
        make_model(), make_examples(8), use_cpu=False, learning_rate=0.01, **{**STRONG, "version": 1}
    )
    trainer.train()
    trainer._save_optimizer_and_scheduler(str(tmp_path))
    trainer._load_optimizer_and_scheduler(str(tmp_path))
    for parameter, state in trainer._bottleneck.club.optimizer.state.items():
        assert state["step"].device.type == "cpu"
        assert state["exp_avg"].device == parameter.device
