"""SMART, R3F and R-Drop against their formulas written literally in float64, gradients included, with dropout on."""

import contextlib
import copy

import pytest
import torch
import transformers

from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.steps.infobert import step_seed
from infobert_fast.training.steps.smoothness import (
    R3F,
    SMART,
    RDrop,
    SmoothnessObjective,
    divergence,
    divergence_for,
    smoothness_step,
)

# Magnitudes at which the term and every part of the adversary show in the gradients; the projection acts on some
# entries and not on others.
STRONG = {
    "smart": SMART(weight=0.7, epsilon=0.3, step_size=2.0, noise_std=0.2, steps=1),
    "smart-2": SMART(weight=0.7, epsilon=0.3, step_size=2.0, noise_std=0.2, steps=2),
    "r3f-uniform": R3F(weight=0.7, scale=0.3),
    "r3f-normal": R3F(weight=0.7, scale=0.3, noise="normal"),
    "rdrop": RDrop(weight=0.7),
}
SEED = 77


def literal_divergence(first, second, kind):
    """Sentence by sentence, class by class."""
    total = 0.0
    for one, other in zip(first, second, strict=True):
        if kind == "squared_error":
            total = total + (one - other).pow(2).sum()
        else:
            p, q = one.softmax(-1), other.softmax(-1)
            total = total + (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    return total / len(first)


@pytest.fixture
def run_step(make_runner, as_batch):
    def run(model, batch, objective, *, weight=1.0, runner=None, **methods):
        runner = make_runner(model, **methods) if runner is None else runner
        terms = smoothness_step(objective, as_batch(batch, weight, lengths=[]), runner, SEED)
        runner.model.remove()
        return terms.mean

    return run


@pytest.fixture
def watched_runner(make_runner):
    """A runner that shows each forward's delta to a function."""

    def make(model, watch, **methods):
        def forward(batch, delta=None):
            watch(delta)
            return Runner.forward(runner, batch, delta)

        runner = make_runner(model, forward=forward, **methods)
        return runner

    return make


def literal_step(model, batch, method, kind, same, scale=1.0):
    """The papers' formulas; gradients are left in ``.grad``. Dropout is repeated by setting the generator back."""
    ids, mask = batch["input_ids"], batch["attention_mask"].unsqueeze(-1)
    state = torch.get_rng_state()

    def predict(delta):
        if same:
            torch.set_rng_state(state)
        out = model(
            inputs_embeds=model.get_input_embeddings()(ids) + delta,
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        )
        return out.loss, out.logits

    generator = torch.Generator().manual_seed(SEED)
    shape = (*ids.shape, model.config.hidden_size)
    task, f = predict(torch.zeros(shape, dtype=torch.float64))
    if isinstance(method, RDrop):
        other_task, g = predict(torch.zeros(shape, dtype=torch.float64))
        p, q = f.softmax(-1), g.softmax(-1)
        if kind == "squared_error":
            term = (f - g).pow(2).mean()
        else:
            term = ((p * (p / q).log()).sum() / 2 + (q * (q / p).log()).sum() / 2) / len(f)
        task = task / 2 + other_task / 2
    else:
        delta = torch.empty(shape, dtype=torch.float64)
        if isinstance(method, R3F) and method.noise == "uniform":
            delta.uniform_(-method.scale, method.scale, generator=generator)
        else:
            delta.normal_(0, method.scale if isinstance(method, R3F) else method.noise_std, generator=generator)
        delta = delta * mask
        for _ in range(method.steps if isinstance(method, SMART) else 0):
            delta = delta.detach().requires_grad_()
            _, g = predict(delta)
            for i in range(len(f)):  # each sentence climbs its own divergence
                value = literal_divergence(f[i : i + 1].detach(), g[i : i + 1], kind)
                value.backward(retain_graph=True, inputs=[delta])
            moved = delta.detach() + method.step_size * delta.grad
            delta = torch.where(moved.abs() > method.epsilon, method.epsilon * moved.sign(), moved) * mask
        _, g = predict(delta)
        term = literal_divergence(f, g, kind)
    loss = scale * (task + method.weight * term)
    loss.backward()
    return {"task_loss": task.item(), "smoothness": term.item(), "loss": loss.item()}


@pytest.mark.parametrize("kind", ["symmetric_kl", "squared_error"])
@pytest.mark.parametrize(
    ("name", "same"), [(name, same) for name in STRONG for same in (False, True) if (name, same) != ("rdrop", True)]
)
def test_values_and_gradients_are_the_formulas(
    make_model, make_examples, pad, run_step, gradients, assert_close, name, kind, same
):
    method = STRONG[name]
    model = make_model(dtype=torch.float64, num_labels=3 if kind == "symmetric_kl" else 1)
    batch = pad(make_examples(4))
    if kind == "squared_error":
        batch["labels"] = batch["labels"].double()
    twin = copy.deepcopy(model)
    torch.manual_seed(5)
    measured = run_step(model, batch, SmoothnessObjective(method, kind, same), weight=0.5)
    torch.manual_seed(5)
    expected = literal_step(twin, batch, method, kind, same, scale=0.5)
    assert_close(gradients(model), gradients(twin), 1e-11)
    for key, value in expected.items():
        assert measured[key].item() == pytest.approx(value, rel=1e-5)
    assert expected["smoothness"] > 1e-3
    plain = copy.deepcopy(model)
    plain.zero_grad()
    torch.manual_seed(5)
    plain(**batch).loss.div(2).backward()
    key = "bert.embeddings.word_embeddings.weight"
    assert (gradients(plain)[key] - gradients(model)[key]).abs().max() > 1e-4  # the term is in the gradient


@pytest.mark.parametrize("name", ["smart", "smart-2"])
def test_the_projection_acts_and_the_ascent_climbs(make_model, make_examples, pad, run_step, watched_runner, name):
    """Without dropout: every entry within epsilon, some at it, padding at zero, and a larger divergence than noise."""
    model, batch, seen = make_model(dropout=0.0, dtype=torch.float64), pad(make_examples(4)), []
    method, runner = (
        STRONG[name],
        watched_runner(model, lambda delta: seen.append(None if delta is None else delta.detach())),
    )
    climbed = run_step(model, batch, SmoothnessObjective(method), runner=runner)["smoothness"]
    delta, padding = seen[-1], ~batch["attention_mask"].bool()
    assert len(seen) == 2 + method.steps
    assert delta.abs().max() <= method.epsilon + 1e-12
    at_the_edge = (delta.abs() > method.epsilon - 1e-9).double().mean()
    assert 0.01 < at_the_edge < 0.99
    assert not delta[padding].any()
    noise = SMART(method.weight, method.epsilon, 0.0, method.noise_std)
    assert climbed > 2 * run_step(model, batch, SmoothnessObjective(noise))["smoothness"]


def test_a_sentences_perturbation_does_not_depend_on_its_batch(
    make_model, make_examples, pad, run_step, watched_runner
):
    """Twice the batch, the same steps: the adversary climbs by each sentence's own divergence."""
    model, found = make_model(dropout=0.0, dtype=torch.float64), []
    examples = make_examples(lengths=[7, 7])
    for count in (1, 2):
        batch = pad(examples[:count])
        seen = []
        runner = watched_runner(model, lambda delta, seen=seen: seen.append(delta))
        # 7 x 32 entries: the generator fills the first sentence alike, however many follow.
        run_step(model, batch, SmoothnessObjective(SMART(epsilon=10.0, step_size=2.0, noise_std=0.2)), runner=runner)
        start = torch.empty(7, 32, dtype=torch.float64).normal_(0, 0.2, generator=torch.Generator().manual_seed(SEED))
        found.append(seen[-1][0] - start)
    assert found[0].abs().max() > 0.01
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)


def test_gradient_scaling_cancels(make_model, make_examples, pad, run_step, gradients, assert_close):
    """A float16 scaler multiplies the divergence that SMART climbs by a step that is not normalised: it is undone."""
    found = []
    for factor in (1.0, 65536.0):
        model = make_model(dtype=torch.float64)
        torch.manual_seed(5)
        run_step(
            model,
            pad(make_examples(4)),
            SmoothnessObjective(STRONG["smart"]),
            scale=lambda loss, factor=factor: loss * factor,
        )
        found.append(gradients(model))
    assert_close(found[1], found[0], 1e-12)


@pytest.mark.parametrize(("name", "forwards"), [("smart", 3), ("smart-2", 4), ("r3f-uniform", 2), ("rdrop", 2)])
def test_one_backward_and_every_forward_but_the_last_deferred(
    make_model, make_examples, pad, run_step, watched_runner, name, forwards
):
    model, batch, deferred, calls = make_model(), pad(make_examples(4)), [], []

    @contextlib.contextmanager
    def defer():
        deferred.append(1)
        yield
        deferred.pop()

    def backward(loss, last=True):
        calls.append(("backward", bool(deferred), last))
        loss.backward()

    def watch(delta):
        calls.append(("forward", bool(deferred)))

    runner = watched_runner(model, watch, backward=backward, deferred=defer)
    run_step(model, batch, SmoothnessObjective(STRONG[name]), runner=runner)
    assert calls == [("forward", True)] * (forwards - 1) + [("forward", False), ("backward", False, True)]


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", ["smart", "r3f-uniform"])
def test_dropout_masks_are_replayed_or_fresh(make_model, make_examples, pad, run_step, name, same):
    model, masks = make_model(dropout=0.3), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda module, args, out: masks.append((out == 0) & (args[0] != 0)))
    run_step(model, pad(make_examples(4)), SmoothnessObjective(STRONG[name], same_dropout=same))
    passes = 3 if name == "smart" else 2
    each = len(masks) // passes
    for k in range(1, passes):
        equal = [torch.equal(a, b) for a, b in zip(masks[:each], masks[k * each : (k + 1) * each], strict=True)]
        assert all(equal) if same else not any(equal)


def test_the_published_radius_vanishes_in_float32_under_the_same_masks(make_model, make_examples, pad, run_step):
    """Why the masks are fresh by default: at 1e-5 the perturbation alone moves the term to the size of rounding."""
    model, batch = make_model(), pad(make_examples(4))
    for method in (SMART(), R3F()):
        found = {same: run_step(model, batch, SmoothnessObjective(method, same_dropout=same)) for same in (True, False)}
        assert found[True]["smoothness"] < 1e-7
        assert found[False]["smoothness"] > 1e-3


def test_divergence_by_hand():
    """Two classes, p = (1/2, 1/2) and q = (1/4, 3/4): the two directions sum to 1/4 log 3."""
    p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]).log()
    expected = 0.25 * torch.tensor(3.0).log()
    torch.testing.assert_close(divergence([p], [q]), expected)
    torch.testing.assert_close(divergence([q], [p]), expected)
    torch.testing.assert_close(divergence([p, p], [q, p]), expected / 2)  # two heads: their mean
    torch.testing.assert_close(divergence([p], [q], "squared_error"), torch.tensor(3.0).log().square() / 2)
    assert divergence([p], [p]) == 0


def test_divergence_of_a_task(make_model):
    config = make_model().config
    assert divergence_for(config) == "symmetric_kl"
    config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match=r"'multi_label_classification'.*no distribution"):
        divergence_for(config)
    config.problem_type = None
    config.num_labels = 1
    assert divergence_for(config) == "squared_error"


READERS = ["item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero"]


@pytest.mark.parametrize("name", STRONG)
def test_no_value_is_read_on_the_host(monkeypatch, make_model, make_examples, pad, run_step, make_runner, name):
    """On a device each of these would wait for it; the encoder's own forward may read."""
    model, batch = make_model(), pad(make_examples(4))
    in_encoder = False

    def encoder(batch, delta=None):
        nonlocal in_encoder
        in_encoder = True
        out = Runner.forward(runner, batch, delta)
        in_encoder = False
        return out

    runner = make_runner(model, forward=encoder)

    def guarded(original, called):
        def reader(*args, **kwargs):
            assert in_encoder, f"{called} was called within a step"
            return original(*args, **kwargs)

        return reader

    with monkeypatch.context() as patch:
        for reader in READERS:
            patch.setattr(torch.Tensor, reader, guarded(getattr(torch.Tensor, reader), reader))
        run_step(model, batch, SmoothnessObjective(STRONG[name]), runner=runner)
        with pytest.raises(AssertionError, match="item was called"):  # the guard itself works
            torch.ones(()).item()


# ---- through the trainer


def settings_of(name):
    return {
        "vanilla": {"objective": "vanilla"},
        "freelb": {"objective": "freelb", "adv_steps": 2, "adv_lr": 0.3},
        "smart": {"objective": "smart", "smart_epsilon": 0.3, "smart_step_size": 2.0, "smart_noise_std": 0.2},
        "r3f": {"objective": "r3f", "r3f_scale": 0.3},
        "rdrop": {"objective": "rdrop"},
    }[name]


@pytest.mark.parametrize("name", ["smart", "r3f", "rdrop"])
def test_the_trainer_accumulates_the_mean_of_its_micro_batches(
    make_model, make_examples, make_trainer, make_runner, as_batch, movement, assert_close, name
):
    """Two micro-batches of four against the step called by hand."""
    model = make_model(dropout=0.0, dtype=torch.float64)
    twin = copy.deepcopy(model)
    trainer = make_trainer(model, make_examples(8), gradient_accumulation_steps=2, **settings_of(name))
    found = movement(model, trainer.train)
    objective = trainer.args.smoothness()
    for micro, start in enumerate((0, 4)):
        batch = trainer.data_collator.collator(make_examples(8)[start : start + 4])
        runner, seed = make_runner(twin), step_seed(trainer.args.seed, 0, 0, micro)
        smoothness_step(objective, as_batch(batch, 0.5), runner, seed)
        runner.model.remove()
    assert_close(found, {key: p.grad for key, p in twin.named_parameters()}, 1e-11)
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["loss"] == pytest.approx(line["task_loss"] + line["smoothness"], rel=1e-5)


def test_vanilla_and_freelb_are_the_settings_they_stand_for(
    make_model, make_examples, make_trainer, movement, assert_close
):
    published = {"vanilla": {"version": -1, "adv_steps": 1, "adv_init_mag": 0.0}}
    published["freelb"] = {"version": -1, "adv_steps": 2, "adv_lr": 0.3}
    for name, settings in published.items():
        found = []
        for chosen in (settings, settings_of(name)):
            model = make_model()
            found.append(movement(model, make_trainer(model, make_examples(8), **chosen).train))
        assert_close(found[1], found[0], 0)


def test_both_ends_of_an_answer_are_compared(make_model, make_examples, make_trainer, pad):
    """Question answering: the divergence is the mean of the start's and the end's, over all positions."""
    config = make_model(dropout=0.3).config
    config.num_labels = 2
    model = transformers.BertForQuestionAnswering(config)
    outputs = []
    model.register_forward_hook(lambda module, args, out: outputs.append(out) if module.training else None)

    def collate(examples):
        batch = pad([{"labels": 0, **example} for example in examples])
        labels = batch.pop("labels")
        return {**batch, "start_positions": labels, "end_positions": labels + 1}

    settings = {**settings_of("rdrop"), "remove_unused_columns": False}
    trainer = make_trainer(model, make_examples(4), data_collator=collate, learning_rate=0.0, **settings)
    trainer.train()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    _, _, one, other = outputs  # the first two are the look at the first batch
    heads = [literal_divergence(one[name], other[name], "symmetric_kl") for name in ("start_logits", "end_logits")]
    assert line["smoothness"] == pytest.approx(sum(heads).item() / 4, rel=1e-5)


def test_several_labels_at_once_are_refused(make_model, make_examples, make_trainer):
    model = make_model(problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="use objective 'vanilla', 'freelb' or 'infobert'"):
        make_trainer(model, make_examples(4), objective="r3f").train()


def test_regression_in_the_trainer(make_model, make_examples, make_trainer):
    examples = [{**example, "labels": float(example["labels"])} for example in make_examples(8)]
    trainer = make_trainer(make_model(num_labels=1), examples, learning_rate=0.01, **settings_of("rdrop"))
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert all(line["smoothness"] > 0 for line in lines)
