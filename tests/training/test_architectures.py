"""Architectures of transformers' registry, tiny: trained as a plain loop trains them, or refused with a reason."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

SPEC = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
architectures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architectures)

# Of every kind: positions behind the padding's place, none, rotations; ids that are transposed or embedded as a pair;
# blocks, pictures, experts, a state space; heads that read the first token, the last, or the mean.
COMMON = ["bert", "roberta", "deberta-v2", "modernbert", "gpt2", "llama", "qwen3", "gemma3", "eurobert", "xlnet",
          "ibert", "yoso", "nystromformer", "xlm", "roformer", "longformer", "mpt", "phimoe", "zamba2"]  # fmt: skip
REFUSED = {
    "bart": "has a decoder, whose states are none of the input's tokens",
    "canine": "without word embeddings, on which the perturbation lives",
    "mra": "first token's state, which sees no other token of its sentence",
    "perceiver": "without word embeddings",
    "reformer": "hidden states that carry no gradient",
}
TEN = ["bert", "roberta", "deberta-v2", "electra", "albert", "distilbert", "modernbert", "xlm-roberta", "mpnet",
       "big_bird"]  # fmt: skip


@pytest.mark.parametrize("name", COMMON)
def test_common_architectures_train(name, tmp_path):
    row = architectures.tried(name, str(tmp_path))
    assert row.feature, row


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_others_are_refused_with_a_reason(name, reason, tmp_path):
    assert reason in architectures.tried(name, str(tmp_path)).refused


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in architectures.NAMES if n not in [*COMMON, *REFUSED]])
def test_every_architecture_trains_or_is_refused(name, tmp_path):
    row = architectures.tried(name, str(tmp_path))
    assert row.feature or row.refused or row.untried, row


def test_the_page_names_every_architecture():
    text = architectures.PAGE.read_text(encoding="utf-8")
    listed = text[text.index(architectures.BEGIN) : text.index(architectures.END)]
    for name in architectures.NAMES:
        assert f"| `{name}` |" in listed


def test_ten_encoders_take_a_plain_loops_step(tmp_path, literal_step, make_critic, make_runner, as_batch, gradients,
                                              assert_close):  # fmt: skip
    """One step's gradient, entry by entry: at version -1 a plain loop's, at version 6 the literal definition's."""
    from infobert_fast import functional
    from infobert_fast.adversary import FreeLB
    from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
    from infobert_fast.training.look import settle_feature
    from infobert_fast.training.steps.infobert import Objective, infobert_step

    settings = {"version": 6, "alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_steps": 2, "adv_lr": 0.3,
                "adv_init_mag": 0.5, "adv_max_norm": 0.0, "norm_type": "l2", "negatives": "chunk"}  # fmt: skip
    batch = architectures.batch_of()
    for name in [*TEN, "modernbert mean"]:
        kind, _, pooling = name.partition(" ")
        changes = {"classifier_pooling": pooling} if pooling else {}
        model = architectures.tiny_model(kind, initializer_range=0.2, **changes)
        plain = architectures.plain_gradient(copy.deepcopy(model), batch)
        standard = {"version": -1, "adv_steps": 1, "adv_init_mag": 0.0}
        stepped, feature = architectures.stepped_gradient(copy.deepcopy(model), batch, str(tmp_path), **standard)
        assert feature == (pooling or "first")
        assert_close(stepped, plain, 1e-6)

        model = model.double()
        critic = make_critic(model, 8)
        twin, runner = copy.deepcopy(model), make_runner(model)
        runner.model.feature = settle_feature(runner.model, model, as_batch(batch), None)
        terms = InformationBottleneck("tokens"), AnchoredFeature(0.3, 0.9)
        objective = Objective(FreeLB(0.3, 0.5, 0.0, 2), *terms, critic, 0.05, 0.3)
        infobert_step(objective, as_batch(batch), runner, 5)
        delta = functional.freelb_init(
            twin.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"], 0.5, seed=5
        )
        literal_step(twin, batch, delta, settings, critic=twin.mi_estimator, feature=feature)
        assert_close(gradients(model), gradients(twin), 1e-6)
        assert torch.isfinite(model.get_input_embeddings().weight.grad).all()
