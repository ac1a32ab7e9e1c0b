"""Options that make a run faster give the same numbers: a compiled encoder, fused AdamW, another attention."""

import pytest
import torch
from torch._dynamo.utils import counters

from infobert_fast import InfoBertArguments
from infobert_fast.training.run import DataArguments, ModelArguments, build_trainer
from infobert_fast.training.termlog import TermLog
from infobert_fast.training.throughput import Throughput

STRONG = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_lr": 0.3, "adv_init_mag": 0.5, "critic_hidden_dim": 20}


@pytest.fixture
def compiled():
    """Arguments of a compiled run; what was compiled is forgotten afterwards."""
    torch.compiler.reset()
    counters.clear()
    yield {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    torch.compiler.reset()


def test_dropout_repeats_in_a_compiled_encoder(make_model, make_examples, make_trainer, compiled):
    """With an adversary that never moves, the passes of a step have one loss: least, greatest and mean."""
    still = {**STRONG, "adv_lr": 0.0, "adv_init_mag": 0.0, "adv_steps": 2, "learning_rate": 0.0}
    model, losses = make_model(dropout=0.3, num_hidden_layers=1), []
    trainer = make_trainer(model, make_examples(4) * 2, **still, **compiled)
    compute = trainer.compute_loss

    def watched(*args, **kwargs):
        loss, outputs = compute(*args, **kwargs)
        losses.append(loss.detach().clone())
        return loss, outputs

    trainer.compute_loss = watched
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 1
    losses = losses[2:]  # without the look at the first batch
    assert len(losses) == 4
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[2], losses[3])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.gpu
def test_an_encoder_compiled_for_the_device(
    make_model, make_examples, make_trainer, make_critic, movement, assert_close, compiled
):
    found = []
    for settings in ({}, {**compiled, "torch_compile_backend": "inductor"}):
        model = make_model(dropout=0.0)
        make_critic(model)
        trainer = make_trainer(model, make_examples(8, lengths=[7] * 8), use_cpu=False, **STRONG, **settings)
        found.append(movement(model.cuda(), trainer.train))
    assert_close(found[1], found[0], 1e-5)


def test_fused_adamw_is_adamw(make_model, make_examples, make_trainer, movement, assert_close):
    found = []
    for name in ("adamw_torch", "adamw_torch_fused"):
        model = make_model(dtype=torch.float64)  # or Adam would blow up the rounding of gradients that are zero
        trainer = make_trainer(
            model, make_examples(12), optim=name, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0, **STRONG
        )
        torch.manual_seed(3)
        found.append(movement(model, trainer.train))
        assert bool(trainer.optimizer.optimizer.defaults["fused"]) is name.endswith("fused")
    assert_close(found[1], found[0], 1e-9)


def test_compiling_leaves_tf32_off(tmp_path):
    """The stock Trainer turns it on for the whole process, the critic's exact products among it."""
    for settings in ({"torch_compile": True}, {"torch_compile_backend": "aot_eager"}):
        assert InfoBertArguments(str(tmp_path), **settings).tf32 is False
    assert InfoBertArguments(str(tmp_path)).tf32 is None


def test_fused_adamw_is_the_default(tmp_path):
    assert InfoBertArguments(str(tmp_path)).optim == "adamw_torch_fused"


@pytest.mark.parametrize("chosen", ["eager", "sdpa"])
def test_attention_can_be_chosen(nli_folder, tmp_path, make_arguments, chosen):
    model = ModelArguments(str(nli_folder / "model"), attn_implementation=chosen)
    data = DataArguments(train_data=[str(nli_folder / "train.jsonl")])
    trainer = build_trainer(model, data, make_arguments(max_steps=1, learning_rate=0.01))
    assert trainer.model.config._attn_implementation == chosen
    trainer.train()


def test_an_attention_that_does_not_exist_is_refused(nli_folder, make_arguments):
    data = DataArguments(train_data=[str(nli_folder / "train.jsonl")])
    with pytest.raises(ValueError, match="attn_implementation"):
        build_trainer(ModelArguments(str(nli_folder / "model"), attn_implementation="fast"), data, make_arguments())


def test_logging_and_counting_read_nothing(monkeypatch, make_model):
    """Terms are read where a log line is printed, and not before: on a device every reader waits."""

    def refuse(*args, **kwargs):
        raise AssertionError("a value was read")

    log, meter, config = TermLog(), Throughput(torch.device("cpu")), make_model().config
    terms = {"task_loss": torch.tensor(1.0), "loss": torch.tensor(2.0)}
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, refuse)
        for _ in range(3):
            log.add(terms, weight=4)
            meter.count([3, 4], 4, 12, config)
        with pytest.raises(AssertionError, match="a value was read"):
            log.read(lambda rows: rows)
    assert log.read(lambda rows: rows)["task_loss"] == 1.0
