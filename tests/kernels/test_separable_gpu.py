"""What only a device can show of the dot-product kernels: no host synchronisation, graphs, memory, equal bits."""

import pytest
import torch
from sizes import SIZES
from torch.nn.functional import normalize

from infobert_fast.kernels.pairs import Terms
from infobert_fast.kernels.separable import separable_backward, separable_forward

pytestmark = pytest.mark.gpu

ROWS, ROWS_IN_BLOCKS, ROWS_OF_A_GRAPH = SIZES.dots
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(n, dtype, labels=False):
    generator = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(n, SIZES.dot_width, generator=generator)).to("cuda", dtype) for _ in range(2))
    groups = torch.randint(n // 4 + 1, (n,), generator=generator).cuda() if labels else None
    return x, y, torch.tensor(20.0, device="cuda"), groups


def step(x, y, scale, labels, grad):
    labels = Terms() if labels is None else Terms(labels, labels, True)
    lse_i, lse_j = separable_forward(x, y, scale, labels, True)
    return lse_i, lse_j, *separable_backward(grad, grad, lse_i, lse_j, x, y, scale, labels, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("labels", [False, True])
def test_no_worse_than_eager_in_the_same_dtype(dtype, labels):
    x, y, scale, groups = inputs(ROWS, dtype, labels)
    grad = torch.full((ROWS,), 1e-3, device="cuda")

    def eager(kind):
        leaves = [t.detach().to(kind).requires_grad_() for t in (x, y, scale)]
        scores = leaves[2] * (leaves[1] @ leaves[0].t())
        if groups is not None:
            own = torch.eye(ROWS, dtype=torch.bool, device="cuda")
            scores = scores.masked_fill((groups[:, None] == groups) & ~own, -torch.inf)
        lse = scores.logsumexp(1), scores.logsumexp(0)
        return *lse, *torch.autograd.grad(sum(part.sum() for part in lse) * 1e-3, leaves)

    for got, plain, exact in zip(step(x, y, scale, groups, grad), eager(dtype), eager(torch.float64), strict=True):
        error, allowed = ((t.double() - exact).abs().max().item() for t in (got, plain))
        assert error <= 2 * allowed + 2 * torch.finfo(dtype).eps * exact.abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeatable_and_without_synchronisation(dtype):
    arguments = *inputs(ROWS_IN_BLOCKS, dtype), torch.full((ROWS_IN_BLOCKS,), 1e-3, device="cuda")
    first = step(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_graph_capture():
    arguments = *inputs(ROWS_OF_A_GRAPH, torch.bfloat16), torch.full((ROWS_OF_A_GRAPH,), 1e-3, device="cuda")
    expected = step(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*arguments)
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True))


@pytest.mark.device_memory
def test_memory_stays_linear_in_the_rows(monkeypatch):
    monkeypatch.undo()  # poisoning memory costs memory
    n = 65536
    arguments = *inputs(n, torch.bfloat16), torch.full((n,), 1e-3, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(*arguments)
    # a block of fp32 scores and of bf16 weights, fp32 sums and products of one block for both sides
    assert torch.cuda.max_memory_allocated() - before < 6 * 2**26 + 5 * 4 * n * 256 + 128 * 2**20
