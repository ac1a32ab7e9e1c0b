"""The counts behind the throughput line, the clock and what it leaves out, and the regularisers' share."""

import time

import pytest
import torch
from transformers import TrainerCallback

from infobert_fast.training.look import counted_flops
from infobert_fast.training.throughput import (
    PEAK_TFLOPS,
    ModuleTimer,
    Throughput,
    peak_tflops_of,
    throughput_line,
)

HIDDEN, LAYERS = 32, 2
LAYER = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * 48  # weights of a layer that every token meets


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert", "distilbert"])
def test_linear_flops_are_two_a_weight(make_model, make_examples, pad, family):
    """Also where layers share their weights; the head, which sees one token a sentence, is the rest."""
    model, batch = make_model(family), pad(make_examples(lengths=[10, 10, 3]))
    with counted_flops(model) as flops:
        model(**batch)
    per_token = sum(flops) / batch["input_ids"].numel()
    projection = 16 * HIDDEN if family in ("electra", "albert") else 0
    head = {"roberta": HIDDEN, "albert": HIDDEN, "bert": HIDDEN, "electra": HIDDEN, "distilbert": HIDDEN}[family]
    expected = 2 * (LAYERS * LAYER + projection) + 2 * (HIDDEN * head + HIDDEN * 3) / 10
    assert per_token == pytest.approx(expected)


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert"])
def test_linear_flops_of_other_encoders(make_model, make_examples, pad, family):
    """At least the layers' own weights; the hooks are gone afterwards."""
    model, batch = make_model(family), pad(make_examples(lengths=[10, 10]))
    with counted_flops(model) as flops:
        model(**batch)
    assert sum(flops) / batch["input_ids"].numel() > 2 * LAYERS * LAYER
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, torch.nn.Linear))


def test_the_run_is_counted_from_its_second_step(make_model, make_examples, make_trainer):
    """Four steps of four sentences; InfoBERT's twelve forwards each."""
    lengths = [3, 4, 5, 6] * 4
    trainer = make_trainer(
        make_model(), make_examples(lengths=lengths), learning_rate=0.01, adv_steps=3, peak_tflops=1e-3
    )
    metrics = trainer.train().metrics
    meter = trainer._throughput
    assert (meter._sentences, meter._tokens, meter._computed) == (12, 54, 72)
    flops = 12 * (meter.flops_per_token * 54 + 4 * LAYERS * HIDDEN * 3 * sum(n * n for n in (3, 4, 5, 6)))
    assert meter._flops == pytest.approx(flops)
    assert metrics["padding"] == pytest.approx(1 - 54 / 72)
    assert metrics["examples_per_second"] == pytest.approx(12 / meter._seconds)
    assert metrics["tokens_per_second"] == pytest.approx(54 / meter._seconds)
    assert metrics["model_flops_utilization"] == pytest.approx(flops / meter._seconds / 1e9)
    assert 0.05 < metrics["peak_memory_gib"] < 100
    assert "regularizers_share" not in metrics


@pytest.mark.parametrize(
    ("settings", "units"),
    [
        ({}, 12),
        ({"anchor_source": "previous"}, 10),
        ({"objective": "vanilla"}, 3),
        ({"objective": "freelb"}, 9),
        ({"objective": "smart", "smart_steps": 2}, 10),
        ({"objective": "rdrop"}, 6),
    ],
)
def test_units_of_an_objective(monkeypatch, make_model, make_examples, make_trainer, settings, units):
    trainer = make_trainer(make_model(), make_examples(4), **settings)
    seen = []
    monkeypatch.setattr(Throughput, "count", lambda self, lengths, computed, units, config: seen.append(units))
    trainer.train()
    assert seen == [units]


def test_evaluations_and_checkpoints_are_left_out(make_model, make_examples, make_trainer):
    class Slow(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            time.sleep(0.4)

    trainer = make_trainer(
        make_model(),
        make_examples(16),
        objective="vanilla",
        learning_rate=0.01,
        eval_dataset=make_examples(4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.callback_handler.callbacks.insert(0, Slow())  # before the clock goes on
    begin = time.perf_counter()
    trainer.train()
    assert time.perf_counter() - begin > 1.6
    assert 0 < trainer._throughput._seconds < 0.4


def test_a_run_of_one_step_has_no_rate(make_model, make_examples, make_trainer):
    metrics = make_trainer(make_model(), make_examples(4), learning_rate=0.01).train().metrics
    assert not {"examples_per_second", "tokens_per_second", "model_flops_utilization"} & metrics.keys()
    assert "no rate (the first step is warm-up" in throughput_line(metrics)


def test_the_regularisers_share(make_model, make_examples, make_trainer, movement, assert_close):
    """Timed forward and backward on some micro-steps, and the numbers stay what they are."""
    found = []
    for profile in (False, True):
        model = make_model()
        trainer = make_trainer(model, make_examples(12), learning_rate=0.01, profile_regularizers=profile)
        found.append(movement(model, trainer.train))
    assert_close(found[1], found[0], 0)
    timer = trainer._throughput.timer
    assert len(timer._steps) == 1  # the second of three
    # Three passes, each: bottleneck forward, twice backward (for the anchors, then for all); anchors forward, backward.
    assert len(timer._spans) == 3 * (1 + 2 + 1 + 1)
    assert all(len(span) == 2 for span in timer._spans)
    assert 0 < timer.share() < 1


def test_the_share_is_of_the_timed_steps():
    class Sleep(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.05)
            return x * 2

    module = Sleep()
    timer = ModuleTimer(torch.device("cpu"), [module], every=2)
    assert timer.share() is None
    for _ in range(4):
        with timer.step():
            module(torch.ones(2, requires_grad=True)).sum().backward()
            time.sleep(0.05)
    assert len(timer._steps) == 2
    assert 0.3 < timer.share() < 0.7


def test_reports_of_two_ranks_are_added():
    meter = Throughput(torch.device("cpu"))
    meter._sentences, meter._tokens, meter._computed, meter._flops, meter._seconds = 10, 90, 100, 3e12, 2.0
    other = torch.tensor([[10, 70, 100, 1e12, 4.0, 5.0 * 2**40, -1]], dtype=torch.float64)
    found = meter.report(lambda rows: torch.cat([rows, other]), peak_tflops=1.0)
    assert found["examples_per_second"] == 5
    assert found["tokens_per_second"] == 40
    assert found["padding"] == pytest.approx(0.2)
    assert found["model_flops_utilization"] == pytest.approx(0.5)  # 4 TFLOP in 4 s on two devices of 1 TFLOP/s
    assert found["peak_memory_gib"] == 5 * 1024


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_by_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops_of(torch.device("cuda")) == peak
    assert peak_tflops_of(torch.device("cpu")) is None
    assert peak is None or peak in PEAK_TFLOPS.values()


def test_the_line():
    metrics = {
        "examples_per_second": 1234.56,
        "tokens_per_second": 34567.8,
        "padding": 0.012,
        "model_flops_utilization": 0.4123,
        "regularizers_share": 0.021,
        "peak_memory_gib": 20.5,
    }
    assert throughput_line(metrics) == (
        "throughput: 1,234.6 examples/s | 34,568 tokens/s | 1.2 % of the computed tokens padding | MFU 41.2 % | "
        "regularisers 2.1 % of a micro-step | peak memory 20.50 GiB"
    )
    assert "set peak_tflops" in throughput_line({"peak_memory_gib": 1.0})


@pytest.mark.gpu
def test_the_share_and_the_memory_on_a_device(make_model, make_examples, make_trainer):
    trainer = make_trainer(
        make_model(attention="eager"),
        make_examples(80),
        use_cpu=False,
        bf16=True,
        learning_rate=0.01,
        profile_regularizers=True,
    )
    metrics = trainer.train().metrics
    assert 0 < metrics["regularizers_share"] < 1
    assert metrics["peak_memory_gib"] > 0
