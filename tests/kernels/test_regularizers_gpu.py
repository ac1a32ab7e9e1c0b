"""What only a device can show of the kernels around the critic: values at full size, no host synchronisation, graph
capture, repeatability. The other files of this folder run on the device too when there is one.
"""

import pytest
import torch
from sizes import SIZES

from infobert_fast import functional
from infobert_fast.regularizers import AnchoredFeature

pytestmark = pytest.mark.gpu


class Step:
    """One step's inputs, and everything around the critic as a step calls it."""

    def __init__(self, batch, length, d, dtype=torch.bfloat16, seed=0):
        generator = torch.Generator("cuda").manual_seed(seed)
        self.lengths = [max(1, length - 7 * i) for i in range(batch)]
        self.mask = (torch.arange(length) < torch.tensor(self.lengths).unsqueeze(1)).long().cuda()
        self.grad, self.h0 = (
            torch.randn(batch, length, d, generator=generator, device="cuda").to(dtype) for _ in range(2)
        )
        self.partners = functional.sample_rows(self.mask, generator)

    def __call__(self, implementation="auto"):
        chosen = {"implementation": implementation, "validate": False}
        h0 = self.h0.detach().requires_grad_()
        anchors = functional.anchor_indices(self.grad, self.mask, lengths=self.lengths, **chosen)
        taken = functional.take_rows(h0.flatten(0, 1), anchors, distinct=True, **chosen)
        exact = functional.club(h0, self.mask, **chosen)
        sampled = functional.club_sampled(h0, self.partners, self.mask, **chosen)
        (dh0,) = torch.autograd.grad(exact + sampled + taken.float().square().sum(), h0)
        start = functional.freelb_init(self.h0, self.mask, 0.1, seed=11, **chosen)
        moved = functional.freelb_step(start, self.grad, self.mask, 0.1, 0.12, "l2", **chosen)
        clamped = functional.freelb_step(start, self.grad, self.mask, 0.1, 0.01, "linf", **chosen)
        marked = functional.select_anchors(self.grad, self.mask, **chosen)
        return anchors, marked, exact.detach(), sampled.detach(), dh0, start, moved, clamped


@pytest.mark.parametrize("shape", SIZES.regularizers, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_values_are_those_of_pytorch(shape, dtype):
    step = Step(*shape, dtype)
    ours, plain = step("triton"), step("torch")
    names = ("anchors", "marked", "exact", "sampled", "dh0", "start", "moved", "clamped")
    tolerance = max(1e-5, 2 * torch.finfo(dtype).eps)
    for name, got, expected in zip(names, ours, plain, strict=True):
        if name == "start":
            assert torch.equal(got, expected)  # the same integers, the same roundings
        elif name == "anchors":  # two norms of which float32 cannot say which is larger may stand in either order
            flat = self_norms(step)
            torch.testing.assert_close(flat[got], flat[expected], rtol=1e-5, atol=0)
        elif name == "marked":
            assert (got != expected).sum() <= 2
        elif name == "dh0":  # rows at the window's edge may be taken by one and not by the other
            apart = (got.float() - expected.float()).abs().amax(-1) > tolerance * float(expected.float().abs().max())
            assert apart.sum() <= 2
        else:
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=1e-6)


def self_norms(step):
    return step.grad.double().flatten(0, 1).norm(dim=1)


@pytest.mark.parametrize("shape", SIZES.regularizers, ids=str)
def test_repeatable_and_without_synchronisation(shape):
    step = Step(*shape)
    first = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", SIZES.regularizers[:2], ids=str)
def test_graph_capture(shape):
    """Replayed on other data of the same lengths: nothing of the first batch is baked in."""
    step = Step(*shape)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    other = Step(*shape, seed=1)
    for mine, fresh in zip((step.grad, step.h0, step.partners), (other.grad, other.h0, other.partners), strict=True):
        mine.copy_(fresh)
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, other(), strict=True))


def test_the_anchored_regulariser_never_waits():
    from infobert_fast import InfoNCE

    shape = SIZES.regularizers[0]
    step, critic = Step(*shape), InfoNCE(shape[2], shape[2], SIZES.width).cuda()
    anchored = AnchoredFeature()
    h0 = step.h0.float().requires_grad_()

    def bound():
        value = anchored(critic, h0, h0[:, 0], step.grad, step.mask, step.lengths)
        return value.detach(), *torch.autograd.grad(value, [h0, *critic.parameters()])

    first = bound()  # the permutation of this many pairs is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = bound()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.device_memory
def test_memory_is_that_of_the_results(monkeypatch):
    monkeypatch.undo()  # poisoning memory costs memory
    step = Step(256, 128, 1024)
    torch.cuda.synchronize()
    for run, allowed in (
        (lambda: functional.anchor_indices(step.grad, step.mask, lengths=step.lengths, validate=False), 1 << 20),
        (lambda: functional.club(step.h0, step.mask, validate=False), 4 << 20),
        (lambda: functional.freelb_step(step.grad.float(), step.grad, step.mask, 0.1, 0.1, validate=False), 0),
    ):
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        results = 2 * 4 * step.grad.numel() if allowed == 0 else 0  # delta and the next delta
        assert torch.cuda.max_memory_allocated() - before <= results + max(allowed, 1 << 20)
