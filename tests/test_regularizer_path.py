"""The regularisers' path, from the gradient to the bounds' own gradients: nothing in it waits for the device.

PyTorch itself tells what a device would have to wait for: operators tagged as giving a host value, or a shape that
depends on data. On a CPU every operator of two whole passes is looked at; on a device synchronisation is forbidden and
the path captured in a CUDA graph. Terms over all ranks are exempt: their shapes are exchanged between hosts.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import SequenceClassifierOutput

from infobert_fast import InfoNCE, checks
from infobert_fast.adversary import FreeLB
from infobert_fast.regularizers import AFR_VERSIONS, VERSIONS, AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.steps.infobert import Objective, infobert_step

HIDDEN, LENGTHS = 16, [9, 4, 6, 1, 7]


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(40, HIDDEN)
        self.embed, self.encode = torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN)
        self.critic = InfoNCE(HIDDEN, HIDDEN, 12)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, output_hidden_states):
        embedded = self.embed(self.words(input_ids)).tanh()
        last = self.encode(embedded + embedded.mean(1, keepdim=True)).tanh()
        return SequenceClassifierOutput(last[:, 0].square().sum(-1).mean(), hidden_states=(embedded, last))


@pytest.fixture
def make_step():
    """``step()`` runs two passes of the step on one batch; the encoder's parameters keep the gradient."""

    def make(version, negatives, sampling, device="cpu"):
        torch.manual_seed(0)
        model = Encoder().to(device)
        mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long().to(device)
        ids = torch.randint(40, mask.shape).to(device)
        kind = VERSIONS[version]
        bottleneck = kind and InformationBottleneck(kind, sampling, hidden_size=HIDDEN, max_length=12).to(device)
        anchored = AnchoredFeature(0.3, 0.9, negatives) if version in AFR_VERSIONS else None
        objective = Objective(FreeLB(0.3, 0.1, 0.2, 2), bottleneck, anchored, model.critic, beta=0.4, alpha=0.7)

        batch = Batch({"input_ids": ids, "attention_mask": mask}, LENGTHS)
        runner = Runner(PerturbedModel(model))
        return model, objective, lambda: infobert_step(objective, batch, runner, seed=1)

    return make


class Readers(TorchDispatchMode):
    """Counts the operators that a device would have to wait for; those on ``exempt`` tensors are not counted."""

    def __init__(self, exempt=()):
        super().__init__()
        self.exempt = {id(tensor) for tensor in exempt}
        self.all, self.reading = Counter(), Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.all[str(function)] += 1
        if function.namespace == "aten" and function._opname in ("index", "index_put", "index_put_"):
            reads = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
        else:
            reads = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))
        if reads and id(arguments[0]) not in self.exempt:
            self.reading[str(function)] += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("sampling", ["exact", "sampled"])
@pytest.mark.parametrize(
    ("version", "negatives"), [(version, "chunk") for version in VERSIONS] + [(v, "batch") for v in AFR_VERSIONS]
)
def test_no_operator_depends_on_data(monkeypatch, make_step, version, negatives, sampling):
    _, objective, step = make_step(version, negatives, sampling)
    step()  # the first one fills the caches
    club = objective.bottleneck and objective.bottleneck.club
    # The learned bound's Adam counts its steps in a tensor on the host, whatever the device.
    exempt = [state["step"] for state in club.optimizer.state.values()] if club else []
    monkeypatch.setattr(checks, "values_readable", lambda tensor, validate: False)  # as on a device
    with Readers(exempt) as readers:
        step()
    assert not readers.reading
    assert sum(readers.all.values()) > 50


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: x.long().repeat_interleave(torch.ones(3, dtype=torch.int64)),
    ],
)
def test_the_guard_sees(read):
    with Readers() as readers:
        read(torch.ones(3))
    assert readers.reading


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", ["exact", "sampled"])
@pytest.mark.parametrize(
    ("version", "negatives"), [(version, "chunk") for version in VERSIONS] + [(v, "batch") for v in AFR_VERSIONS]
)
def test_nothing_waits_for_the_device(make_step, version, negatives, sampling):
    _, _, step = make_step(version, negatives, sampling, "cuda")
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tokens", "sentence"])
@pytest.mark.parametrize("negatives", ["chunk", "batch"])
def test_the_path_is_captured_in_a_cuda_graph(negatives, kind):
    """Selection, gather, critic, both bounds and their backward, replayed on other values of the same lengths."""
    torch.manual_seed(0)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long().cuda()
    embedded, last, grad = (torch.randn(*mask.shape, HIDDEN, device="cuda") for _ in range(3))
    leaves = [embedded.requires_grad_(), last.requires_grad_()]
    critic = InfoNCE(HIDDEN, HIDDEN, 12).cuda()
    anchored, bottleneck = AnchoredFeature(0.3, 0.9, negatives), InformationBottleneck(kind)

    def path():
        afr = anchored(critic, embedded, last[:, 0], grad, mask, LENGTHS)
        ib = bottleneck(embedded, last, mask, LENGTHS)
        gradients = torch.autograd.grad(ib - afr, [*leaves, *critic.parameters()])
        return afr.detach(), ib.detach(), *gradients

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            path()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = path()
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in (embedded, last, grad):
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        for replayed, eager in zip(captured, path(), strict=True):
            assert torch.equal(replayed, eager)
