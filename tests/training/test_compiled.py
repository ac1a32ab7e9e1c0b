"""A compiled encoder: one graph for batches of every length, and the gradients of the eager one."""

import pytest
import torch
from torch._dynamo.utils import counters

STRONG = {"alpha": 0.3, "beta": 0.05, "cl": 0.3, "ch": 0.9, "adv_lr": 0.3, "adv_init_mag": 0.5, "critic_hidden_dim": 20}
LENGTHS = [7, 9, 3, 4, 11, 5, 6, 8]  # sequential batches of two: 9, 4, 11 and 8 long
SMALL = {"num_hidden_layers": 1, "dtype": torch.float64}


@pytest.fixture(params=["aot_eager", "inductor"])
def compiled(request):
    """Arguments of a compiled run; what was compiled is forgotten afterwards."""
    torch.compiler.reset()
    counters.clear()
    yield {"torch_compile": True, "torch_compile_backend": request.param}
    torch.compiler.reset()


@pytest.fixture
def run(make_model, make_examples, make_trainer, make_critic, movement):
    """What four steps on ragged batches take from the parameters, and the logs; evaluated after every other one."""

    def train(dropout=0.0, **settings):
        model, examples = make_model(dropout=dropout, **SMALL), make_examples(lengths=LENGTHS)
        if settings.get("version", 6) > 3 and "objective" not in settings:
            make_critic(model)
        settings = {"learning_rate": 0.1, "eval_strategy": "steps", "eval_steps": 2, **settings}
        trainer = make_trainer(model, examples, per_device_train_batch_size=2, eval_dataset=examples[:3], **settings)
        torch.manual_seed(3)
        moved = movement(model, trainer.train)
        return moved, [{k: v for k, v in line.items() if "loss" in k} for line in trainer.state.log_history]

    return train


def assert_same_run(found, expected, assert_close):
    assert_close(found[0], expected[0], 1e-10)
    for one, other in zip(found[1], expected[1], strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_one_graph_serves_every_length(run, assert_close, compiled):
    """No break and no other graph: not for a length, a fresh delta, the second traversal or an evaluation."""
    before = torch._functorch.config.donated_buffer, torch._dynamo.config.force_nn_module_property_static_shapes
    settings = {**STRONG, "version": 6, "adv_steps": 2}
    assert_same_run(run(**settings, **compiled), run(**settings), assert_close)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    after = torch._functorch.config.donated_buffer, torch._dynamo.config.force_nn_module_property_static_shapes
    assert after == before
