"""One backward a pass gives the gradients of the literal two, with dropout on."""

import contextlib
import copy
import dataclasses
import itertools

import pytest
import torch

from infobert_fast import checks, functional
from infobert_fast.adversary import FreeLB
from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step, step_seed

PUBLISHED = {
    "version": 6,
    "alpha": 0.3,
    "beta": 0.05,
    "cl": 0.3,
    "ch": 0.9,
    "adv_steps": 3,
    "adv_lr": 0.3,
    "adv_init_mag": 0.5,
    "adv_max_norm": 0.0,
    "norm_type": "l2",
    "negatives": "chunk",
    "ib_sampling": "exact",
    "anchor_source": "current",
}
SEED = 1234


@pytest.fixture
def objective():
    """The objective of settings under their published names."""

    def make(settings, critic=None, club=None, longest=24):
        adversary = FreeLB(
            settings["adv_lr"],
            settings["adv_init_mag"],
            settings["adv_max_norm"],
            settings["adv_steps"],
            settings["norm_type"],
        )
        bottleneck = None
        if (kind := VERSIONS[settings["version"]]) is not None:
            bottleneck = InformationBottleneck(kind, settings["ib_sampling"], hidden_size=32, max_length=longest)
        if club is not None:
            bottleneck.club = club
        anchored = None
        if settings["version"] in AFR_VERSIONS:
            anchored = AnchoredFeature(settings["cl"], settings["ch"], settings["negatives"])
        terms = {name: settings[name] for name in ("beta", "alpha", "anchor_source")}
        return Objective(adversary, bottleneck, anchored, critic, **terms)

    return make


@pytest.fixture
def run_step(make_runner, as_batch):
    """``infobert_step`` on one micro-batch, as a script without a trainer would call it; its mean terms."""

    def run(model, batch, objective, *, seed=SEED, weight=1.0, lengths=None, runner=None, **methods):
        runner = make_runner(model, **methods) if runner is None else runner
        terms = infobert_step(objective, as_batch(batch, weight, lengths), runner, seed)
        runner.model.remove()
        return terms.mean

    return run


@pytest.fixture
def compare(make_model, make_examples, pad, make_critic, make_club, literal_step, run_step, objective, gradients):
    """Gradients of the step and of its literal twin over the micro-batches of one optimisation step."""

    def run(family="bert", accumulation=1, attention="sdpa", partners=None, batch_size=4, lengths=None, **changes):
        settings = {**PUBLISHED, **changes}
        model = make_model(family, dtype=torch.float64, attention=attention)
        critic = make_critic(model) if settings["version"] in AFR_VERSIONS else None
        club = make_club(settings["version"])
        twin, twin_club = copy.deepcopy(model), copy.deepcopy(club)
        if club is not None:  # a copied optimiser keeps the parameters of the original
            twin_club.optimizer = torch.optim.Adam(twin_club.parameters(), lr=1e-3)
        batches = [pad(make_examples(batch_size, seed=m, lengths=lengths)) for m in range(accumulation)]
        seeds = [step_seed(42, 0, 0, m) for m in range(accumulation)]

        target = objective(settings, critic, club)
        torch.manual_seed(99)
        measured = [
            run_step(model, batch, target, seed=seed, weight=1 / accumulation)
            for batch, seed in zip(batches, seeds, strict=True)
        ]
        torch.manual_seed(99)
        expected = []
        for batch, seed in zip(batches, seeds, strict=True):
            embeddings = twin.get_input_embeddings()(batch["input_ids"])
            delta = functional.freelb_init(
                embeddings,
                batch["attention_mask"],
                settings["adv_init_mag"],
                settings["norm_type"],
                seed=seed,
            )
            drawn = None if partners is None else partners(batch["attention_mask"], seed, settings["adv_steps"])
            expected.append(
                literal_step(
                    twin,
                    batch,
                    delta,
                    settings,
                    critic=getattr(twin, "mi_estimator", None),
                    club=twin_club,
                    partners=drawn,
                    scale=1 / accumulation,
                )
            )
        if club is not None:
            for ours, literal in zip(club.parameters(), twin_club.parameters(), strict=True):
                torch.testing.assert_close(ours, literal, atol=1e-9, rtol=0)
        return gradients(model), gradients(twin), measured, expected

    return run


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(("norm_type", "adv_max_norm"), itertools.product(["l2", "linf"], [0.0, 0.4]))
@pytest.mark.parametrize("adv_steps", [1, 2, 3])
@pytest.mark.parametrize("version", range(-1, 7))
def test_one_backward_is_the_literal_two(
    compare, assert_close, version, adv_steps, norm_type, adv_max_norm, accumulation
):
    actual, expected, measured, literal = compare(
        version=version,
        adv_steps=adv_steps,
        norm_type=norm_type,
        adv_max_norm=adv_max_norm,
        accumulation=accumulation,
    )
    assert_close(actual, expected, 1e-9)
    for terms, numbers in zip(measured, literal, strict=True):
        for name in terms.keys() - {"loss"}:
            assert terms[name].item() == pytest.approx(numbers[name], rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("adv_steps", [2, 3])
@pytest.mark.parametrize("version", [4, 6])
def test_anchors_of_the_pass_before(compare, assert_close, version, adv_steps, accumulation):
    """The cheaper method against its own literal form; and it is another method."""
    changes = {"version": version, "adv_steps": adv_steps, "accumulation": accumulation}
    actual, expected, *_ = compare(anchor_source="previous", **changes)
    assert_close(actual, expected, 1e-9)
    name = "bert.embeddings.word_embeddings.weight"
    assert (compare(**changes)[0][name] - actual[name]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("version", "source", "adv_steps", "units"),
    [
        (6, "current", 1, 4),
        (6, "current", 3, 12),
        (6, "previous", 2, 7),
        (6, "previous", 3, 10),
        (3, "current", 3, 9),
        (-1, "current", 3, 9),
    ],
)
def test_units_of_work(
    make_model, make_examples, pad, make_critic, run_step, objective, version, source, adv_steps, units
):
    """Forwards, traversals of the graph and of those the ones that compute weight gradients, counted in a layer."""
    model, counted = make_model(), []
    layer = model.bert.encoder.layer[1].output.dense

    def forward_hook(module, args, out):
        counted.append("forward")
        out.register_hook(lambda grad: counted.append("input gradient"))

    layer.register_forward_hook(forward_hook)
    layer.weight.register_post_accumulate_grad_hook(lambda parameter: counted.append("weight gradient"))
    settings = {**PUBLISHED, "version": version, "adv_steps": adv_steps, "anchor_source": source}
    run_step(model, pad(make_examples(4)), objective(settings, make_critic(model)))
    assert counted.count("forward") == counted.count("weight gradient") == adv_steps
    assert len(counted) == units


@pytest.mark.parametrize("version", [4, 5, 6])
def test_one_backward_with_all_pairs_of_the_batch(compare, assert_close, version):
    actual, expected, *_ = compare(version=version, negatives="batch")
    assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_one_backward_in_other_encoders(compare, assert_close, family, attention):
    actual, expected, *_ = compare(family, attention=attention, accumulation=2)
    assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("adv_steps", [1, 3])
@pytest.mark.parametrize("version", [3, 6])
def test_one_backward_with_sampled_partners(compare, assert_close, compact_partners, version, adv_steps):
    actual, expected, *_ = compare(
        version=version, adv_steps=adv_steps, ib_sampling="sampled", partners=compact_partners
    )
    assert_close(actual, expected, 1e-9)


def test_one_backward_without_any_perturbation(compare, assert_close):
    """Standard fine-tuning: one pass, no random start; anchors still need a gradient with respect to delta."""
    actual, expected, *_ = compare(adv_steps=1, adv_init_mag=0.0)
    assert_close(actual, expected, 1e-9)


def test_sentences_too_short_for_anchors(compare, assert_close):
    """One token a sentence and the window (0.5, 0.9): no anchor in the batch, and the critic's gradient is zero."""
    actual, expected, measured, _ = compare(lengths=[1, 1, 1], batch_size=3, cl=0.5, ch=0.9)
    assert_close(actual, expected, 1e-9)
    assert measured[0]["afr_lower_bound"] == 0
    assert not any(value.any() for name, value in actual.items() if name.startswith("mi_estimator"))


def test_empty_window_keeps_the_critic_in_the_graph(make_model, make_examples, pad, make_critic, run_step, objective):
    """DistributedDataParallel waits for every parameter's gradient: zeros, not None."""
    model = make_model()
    critic = make_critic(model)
    run_step(model, pad(make_examples(lengths=[1, 1])), objective({**PUBLISHED, "cl": 0.5, "ch": 0.9}, critic))
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in critic.parameters())


def test_both_regularisers_move_the_encoder(compare):
    """The comparison above would also hold if a term were lost on both sides: each changes every layer's gradient."""
    per_version = {version: compare(version=version, adv_steps=1)[0] for version in (-1, 2, 3, 4, 5, 6)}
    for version, other in [(2, -1), (3, -1), (4, -1), (5, 2), (6, 3), (5, 4), (6, 4)]:
        name = "bert.embeddings.word_embeddings.weight"
        difference = (per_version[version][name] - per_version[other][name]).abs().max()
        assert difference > 1e-5, (version, other)


def test_reported_loss_is_the_sum_of_its_terms(make_model, make_examples, pad, make_critic, run_step, objective):
    model = make_model(dtype=torch.float64)
    terms = run_step(model, pad(make_examples(4)), objective(PUBLISHED, make_critic(model)), weight=0.25)
    assert terms.keys() == {"loss", "task_loss", "ib_upper_bound", "afr_lower_bound"}
    assert not any(term.requires_grad for term in terms.values())
    total = terms["task_loss"] + 0.05 * terms["ib_upper_bound"] - 0.3 * terms["afr_lower_bound"]
    assert terms["loss"].item() == pytest.approx(0.25 * total.item(), rel=1e-6)


def test_backward_is_called_once_a_pass_and_reduction_deferred_but_in_the_last(
    make_model, make_examples, pad, make_critic, run_step, objective
):
    model = make_model()
    calls, deferred = [], []

    @contextlib.contextmanager
    def defer():
        deferred.append(True)
        yield
        deferred.append(False)

    def backward(loss, last):
        calls.append((last, bool(deferred) and deferred[-1]))
        loss.backward()

    run_step(
        model,
        pad(make_examples(4)),
        objective(PUBLISHED, make_critic(model)),
        backward=backward,
        deferred=defer,
    )
    assert calls == [(False, True), (False, True), (True, False)]


@pytest.mark.parametrize("version", [-1, 3])
def test_no_extra_input_gradient_without_anchors(
    monkeypatch, make_model, make_examples, pad, run_step, objective, count_calls, version
):
    """FreeLB's ascent takes delta's gradient from the backward that is needed anyway."""
    calls = count_calls(monkeypatch, torch.autograd, "grad")
    run_step(make_model(), pad(make_examples(4)), objective({**PUBLISHED, "version": version}))
    assert not calls


def test_gradient_scaling_does_not_change_the_gradients(
    make_model, make_examples, pad, make_critic, run_step, objective, gradients, assert_close
):
    """A float16 scaler multiplies the loss that g is taken from; its size cancels in ranking and ascent."""
    found = []
    for factor in (1.0, 65536.0):
        model = make_model(dtype=torch.float64)
        torch.manual_seed(5)
        run_step(
            model,
            pad(make_examples(4)),
            objective(PUBLISHED, make_critic(model)),
            scale=lambda loss, factor=factor: loss * factor,
        )
        found.append(gradients(model))
    assert_close(found[1], found[0], 1e-12)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_repeats_within_a_step_and_not_between_steps(
    make_model, make_examples, pad, make_critic, run_step, objective, make_runner, family, attention
):
    """With an adversary that never moves, K passes are K identical passes, or dropout differed."""
    model = make_model(family, attention=attention, dropout=0.3)
    batch = pad(make_examples(4))
    still = objective({**PUBLISHED, "adv_lr": 0.0, "adv_init_mag": 0.0}, make_critic(model))
    seen = []

    def watched(batch, delta):
        out = Runner.forward(runner, batch, delta)
        seen.append((out.task_loss.detach(), out.last_hidden.detach()))
        return out

    for _ in range(2):
        runner = make_runner(model, forward=watched)
        run_step(model, batch, still, runner=runner)
    for step in (seen[:3], seen[3:]):
        for loss, hidden in step:
            assert torch.equal(loss, step[0][0])
            assert torch.equal(hidden, step[0][1])
    assert not torch.equal(seen[0][1], seen[3][1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_masks_repeat_under_a_moving_adversary(
    make_model, make_examples, pad, make_critic, run_step, objective, attention
):
    """The masks themselves, read where a Dropout module turned entries to zero."""
    model = make_model(attention=attention, dropout=0.3)
    masks = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda module, args, out: masks.append((out == 0) & (args[0] != 0)))
    batch, moving = pad(make_examples(4)), objective(PUBLISHED, make_critic(model))
    for _ in range(2):
        run_step(model, batch, moving)
    each = len(masks) // 6
    assert each >= 6
    passes = [masks[k * each : (k + 1) * each] for k in range(6)]
    for step in (passes[:3], passes[3:]):
        for k in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(step[0], step[k], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(passes[0], passes[3], strict=True))


def test_the_step_draws_its_perturbation_from_its_own_seed(
    make_model, make_examples, pad, make_critic, run_step, objective
):
    """The default generator only feeds dropout: a step advances it as far as one forward does."""
    model = make_model()
    batch = pad(make_examples(4))
    torch.manual_seed(1)
    model(**batch)
    after_forward = torch.get_rng_state()
    for sampling in ("exact", "sampled"):
        torch.manual_seed(1)
        run_step(model, batch, objective({**PUBLISHED, "ib_sampling": sampling}, make_critic(model)))
        assert torch.equal(torch.get_rng_state(), after_forward)


def test_step_seed_is_a_function_of_the_place():
    places = list(itertools.product([1, 2], [0, 1], [0, 1, 2], [0, 1]))
    seeds = [step_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert seeds == [step_seed(*place) for place in places]
    assert all(0 <= seed < 2**63 for seed in seeds)


READERS = ["item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero"]


@pytest.mark.parametrize("negatives", ["chunk", "batch"])
@pytest.mark.parametrize("sampling", ["exact", "sampled"])
@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_no_value_is_read_on_the_host(
    monkeypatch,
    make_model,
    make_examples,
    pad,
    make_critic,
    run_step,
    objective,
    make_runner,
    version,
    sampling,
    negatives,
):
    """On a device each of these would wait for it. Value checks are off, as they are there; the encoder's own forward
    may read (transformers looks for padding in the mask under SDPA).
    """
    model = make_model()
    batch = pad(make_examples(4))
    lengths = batch["attention_mask"].sum(1).tolist()
    target = objective(
        {**PUBLISHED, "version": version, "ib_sampling": sampling, "negatives": negatives}, make_critic(model)
    )
    run_step(model, batch, target)
    in_encoder = False

    def encoder(batch, delta):
        nonlocal in_encoder
        in_encoder = True
        out = Runner.forward(runner, batch, delta)
        in_encoder = False
        return out

    runner = make_runner(model, forward=encoder)

    def guarded(owner, name):
        original = getattr(owner, name)

        def reader(*args, **kwargs):
            assert in_encoder, f"{name} was called within a step"
            return original(*args, **kwargs)

        return reader

    with monkeypatch.context() as patch:
        patch.setattr(checks, "values_readable", lambda tensor, validate: False)
        for name in READERS:
            patch.setattr(torch.Tensor, name, guarded(torch.Tensor, name))
        patch.setattr(torch, "nonzero", guarded(torch, "nonzero"))
        patch.setattr(torch, "masked_select", guarded(torch, "masked_select"))
        run_step(model, batch, target, lengths=lengths, runner=runner)
        with pytest.raises(AssertionError, match="item was called"):  # the guard itself works
            torch.ones(()).item()


@pytest.mark.parametrize("version", [3, 6])
@pytest.mark.parametrize("adv_steps", [1, 2])
def test_a_clean_pass_comes_first_and_weighs_as_much(
    make_model, make_examples, pad, make_critic, literal_step, run_step, objective, gradients, version, adv_steps
):
    """One literal pass at delta 0 and ``adv_steps`` from the random start, in the proportion 1 to ``adv_steps``."""
    settings = {**PUBLISHED, "version": version, "adv_steps": adv_steps}
    model = make_model(dtype=torch.float64)
    critic = make_critic(model) if version == 6 else None
    twin, batch = copy.deepcopy(model), pad(make_examples(4))
    target = objective(settings, critic)
    target.adversary = dataclasses.replace(target.adversary, clean_pass=True)
    assert target.units == (4 if version == 6 else 3) * (adv_steps + 1)
    torch.manual_seed(99)
    run_step(model, batch, target)
    embeddings = twin.get_input_embeddings()(batch["input_ids"])
    start = functional.freelb_init(embeddings, batch["attention_mask"], settings["adv_init_mag"], "l2", seed=SEED)
    for passes, delta in ((1, torch.zeros_like(start)), (adv_steps, start)):
        torch.manual_seed(99)
        literal_step(
            twin,
            batch,
            delta,
            {**settings, "adv_steps": passes},
            critic=getattr(twin, "mi_estimator", None),
            scale=passes / (adv_steps + 1),
        )
    found, expected = gradients(model), gradients(twin)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=0)


class Probing(Runner):
    """As an engine whose graphs are traversed once: the input gradient takes a forward of its own."""

    second_forward = True


@pytest.mark.parametrize("sampling", ["exact", "sampled"])
@pytest.mark.parametrize("anchor_source", ["current", "previous"])
def test_a_second_forward_repeats_the_first(
    make_model, make_examples, pad, make_critic, run_step, objective, gradients, assert_close, sampling, anchor_source
):
    """Dropout on, partners drawn: the same random numbers in a pass's two forwards, and in the next pass's."""
    settings = {**PUBLISHED, "adv_steps": 2, "ib_sampling": sampling, "anchor_source": anchor_source, "beta": 2.0}
    found, terms, batch = [], [], pad(make_examples(4))
    for kind in (Runner, Probing):
        model = make_model(dropout=0.3, dtype=torch.float64, num_hidden_layers=1)
        critic = make_critic(model)
        torch.manual_seed(99)
        terms.append(run_step(model, batch, objective(settings, critic), runner=kind(PerturbedModel(model))))
        found.append(gradients(model))
        state = torch.get_rng_state()
    assert_close(found[1], found[0], 1e-14)
    assert terms[0] == terms[1]
    assert not torch.equal(state, torch.manual_seed(99).get_state())
