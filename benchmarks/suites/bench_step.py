"""A step of a RoBERTa: standard, FreeLB, InfoBERT, the least that InfoBERT's passes cost, and the literal one.

On a GPU RoBERTa-large, 32 x 128 tokens in bfloat16; on a CPU four layers of RoBERTa-base, 8 x 128 in float32. The
optimiser is left out: it is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from infobert_fast import InfoNCE, functional, reference
from infobert_fast.adversary import FreeLB
from infobert_fast.benchmarks.harness.measuring import DEVICE, Work
from infobert_fast.regularizers import AnchoredFeature, InformationBottleneck
from infobert_fast.training.engines.runner import Runner
from infobert_fast.training.models.forward import Batch, PerturbedModel
from infobert_fast.training.models.perturbation import WordEmbeddings
from infobert_fast.training.steps.infobert import Objective, infobert_step

LAYERS, WIDTH, BATCH, LENGTH = (4, 768, 8, 128) if DEVICE == "cpu" else (24, 1024, 32, 128)
PASSES, ALPHA, BETA, ADV_LR, ADV_INIT = 3, 5e-3, 5e-3, 4e-2, 8e-2  # the published setting for ANLI


class Setting(NamedTuple):
    """A model, its critic, and a batch without padding."""

    model: RobertaForSequenceClassification
    critic: InfoNCE
    batch: dict[str, Tensor]
    lengths: list[int]
    half: bool

    def call(self, **inputs: Any) -> Any:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.half):
            return self.model(**inputs)

    def run(self, delta: Tensor) -> Any:
        words = WordEmbeddings(self.model)
        with words.shifted(delta):
            outputs = self.call(**self.batch, output_hidden_states=True)
        words.remove()
        return outputs

    def zeros(self) -> Tensor:
        return torch.zeros(*self.batch["input_ids"].shape, self.model.config.hidden_size, device=DEVICE)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.critic.parameters()]

    def clear(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


def setting(layers: int, width: int, batch: int, length: int, **config: Any) -> Setting:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            num_labels=3,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=4 * width,
            max_position_embeddings=length + 2,
            **{"vocab_size": 50_265, "attention_probs_dropout_prob": 0.0, **config},
        )
    ).to(DEVICE)
    ids = torch.randint(10, model.config.vocab_size, (batch, length), device=DEVICE)
    labels = torch.arange(batch, device=DEVICE) % 3
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return Setting(model.train(), InfoNCE(width, width).to(DEVICE), inputs, [length] * batch, DEVICE == "cuda")


def literal(
    x: Setting, club: Callable[[Tensor, Tensor], Tensor] | None = None, alpha: float = ALPHA, beta: float = BETA
) -> None:
    """The published trainer's step as it is described: two full backwards a pass, anchors token by token on the host,
    every pair of the critic concatenated, one sampled partner a token for the bottleneck.
    """
    mask, seed = x.batch["attention_mask"], 0
    delta = functional.freelb_init(x.zeros().to(x.model.dtype), mask, ADV_INIT, seed=seed)
    for k in range(PASSES):
        torch.manual_seed(seed)  # the same dropout in all passes
        delta = delta.detach().requires_grad_()
        outputs = x.run(delta)
        h0, z = outputs.hidden_states[0], outputs.hidden_states[-1][:, 0]
        rows = h0.flatten(0, 1)
        if club is None:
            bound = reference.club_sampled(h0, torch.randint(len(rows), (len(rows),), device=DEVICE))
        else:
            bound = club(h0, mask)
        ((outputs.loss + beta * bound) / PASSES).backward(retain_graph=True)
        grad = delta.grad.clone()
        chosen = reference.anchor_indices(grad, mask).tolist()
        order = np.arange(len(chosen))
        np.random.RandomState(42).shuffle(order)
        pairs = [divmod(chosen[i], mask.shape[1]) for i in order]
        local = torch.stack([h0[i, t] for i, t in pairs])
        global_ = torch.stack([z[i] for i, _ in pairs])
        afr = reference.info_nce(
            local.to(delta.dtype), global_.to(delta.dtype), *x.critic.F_func.parameters(), chunk_size=mask.shape[0]
        )
        (-alpha / PASSES * afr).backward()
        if k < PASSES - 1:
            delta = reference.freelb_step(delta.detach(), grad, mask, ADV_LR)


def floor(x: Setting) -> None:
    """What the passes cost before any regulariser: forward, gradient with respect to the input, backward."""
    for _ in range(PASSES):
        delta = x.zeros().to(x.model.dtype).requires_grad_()
        loss = x.run(delta).loss / PASSES
        torch.autograd.grad(loss, delta, retain_graph=True)
        loss.backward()


def step_of(adversary: FreeLB, regularised: bool) -> Callable[[Setting], None]:
    def step(x: Setting) -> None:
        runner = Runner(PerturbedModel(x.model), x.call)
        modules = (InformationBottleneck("tokens"), AnchoredFeature(), x.critic) if regularised else ()
        objective = Objective(adversary, *modules, beta=BETA, alpha=ALPHA)
        infobert_step(objective, Batch(x.batch, x.lengths), runner, seed=0)
        runner.model.remove()

    return step


freelb = FreeLB(ADV_LR, ADV_INIT, 0.0, PASSES)
IMPLEMENTATIONS: dict[str, Callable[[Setting], None]] = {
    "standard": step_of(FreeLB(), False),
    "FreeLB": step_of(freelb, False),
    "floor": floor,
    "infobert-fast": step_of(freelb, True),
    "literal": literal,
}
UNITS = {"standard": 3, "FreeLB": 3 * PASSES}  # in forwards of the encoder; the others 4 a pass


def check(function: Callable[[Setting], None], name: str) -> None:
    """Every parameter's gradient on a small model without dropout, unclipped, in float64 and in float32, in which
    kernels run on a device. Expected of InfoBERT: the literal step with all partners, in float64; of FreeLB: the same
    with no regulariser; of the others: the plain gradient.
    """

    def gradients(step: Callable[[Setting], None], dtype: torch.dtype) -> list[Tensor]:
        x = setting(2, 32, 5, 12, vocab_size=50, hidden_dropout_prob=0.0)
        x = x._replace(model=x.model.to(dtype), critic=x.critic.to(dtype), half=False)
        step(x)
        return [(torch.zeros_like(p) if p.grad is None else p.grad).double() for p in x.parameters()]

    def expected(x: Setting) -> None:
        if name in ("standard", "floor"):
            x.model(**x.batch).loss.backward()
        else:
            literal(x, reference.club, **({"alpha": 0.0, "beta": 0.0} if name == "FreeLB" else {}))

    def mine(x: Setting) -> None:
        literal(x, reference.club) if name == "literal" else function(x)

    exact = gradients(expected, torch.float64)
    largest = max(float(gradient.abs().max()) for gradient in exact)
    for dtype, rtol, atol in ((torch.float64, 1e-7, 1e-10), (torch.float32, 1e-3, 1e-5 * largest)):
        for got, theirs in zip(gradients(mine, dtype), exact, strict=True):
            torch.testing.assert_close(got, theirs, rtol=rtol, atol=atol)


def forward_products() -> float:
    """Multiply-adds of one forward: twelve d x d weights a layer and token, and attention's two products."""
    return LAYERS * BATCH * LENGTH * (12 * WIDTH**2 + 2 * LENGTH * WIDTH)


@pytest.fixture(scope="module")
def real():
    return setting(LAYERS, WIDTH, BATCH, LENGTH)


def test_step(measure, gate, implementation, function, real):
    gate(implementation, lambda: check(function, implementation))
    products = UNITS.get(implementation, 4 * PASSES) * forward_products()

    def call() -> None:
        real.clear()
        function(real)

    measure(call, work=Work(**{"half" if real.half else "fp32": products}), least=2, **size())


def size() -> dict[str, int]:
    return {"layers": LAYERS, "width": WIDTH, "batch": BATCH, "length": LENGTH, "passes": PASSES}


PARTS = ("forward", "input gradient", "backward", "bottleneck", "anchored features", "ascent")


@pytest.mark.parametrize("part", PARTS)
def test_parts(measure, real, part):
    """One pass in its parts, each by itself; the regularisers forward and backward, from states to their gradients."""
    real.clear()
    measure(parts(real)[part], **size())
    real.clear()


def parts(x: Setting) -> dict[str, Callable[[], Any]]:
    mask = x.batch["attention_mask"]
    delta = functional.freelb_init(x.zeros(), mask, ADV_INIT, seed=0).requires_grad_()
    outputs = x.run(delta)
    (grad,) = torch.autograd.grad(outputs.loss, delta, retain_graph=True)
    h0 = outputs.hidden_states[0].detach().requires_grad_()
    z = outputs.hidden_states[-1][:, 0].detach().requires_grad_()
    bottleneck, anchored = InformationBottleneck("tokens"), AnchoredFeature()
    leaves = [h0, z, *x.critic.parameters()]
    return {
        "forward": lambda: x.run(delta),
        "input gradient": lambda: torch.autograd.grad(outputs.loss, delta, retain_graph=True),
        "backward": lambda: outputs.loss.backward(retain_graph=True),
        "bottleneck": lambda: torch.autograd.grad(bottleneck(h0, z, mask, x.lengths), h0),
        "anchored features": lambda: torch.autograd.grad(anchored(x.critic, h0, z, grad, mask, x.lengths), leaves),
        "ascent": lambda: freelb.ascend(delta.detach(), grad, mask),
    }
