"""What only a device can show: no host synchronisation, graph capture, memory, repeatability at full size.

The other files of this folder run on the device too when there is one.
"""

import pytest
import torch
from oracle import make_case

from infobert_fast.kernels.pairwise_mlp import pairwise_mlp_backward, pairwise_mlp_forward

pytestmark = pytest.mark.gpu

# (rows, globals, pairs, chunk size): the paper's step, its pairs as one batch, long chunks, and a large batch
SHAPES = [(1664, 32, 1664, 32), (1664, 32, 1664, None), (1000, 900, 1000, 300), (4096, 4096, None, None)]


def step(case, grad):
    lse, scores = pairwise_mlp_forward(*case.operands, **case.options)
    return lse, *pairwise_mlp_backward(grad, lse, *case.operands, scores=scores, **case.options)


def incoming(case):
    return torch.ones(
        case.b.shape[0] if case.options["chunk_size"] is None else len(case.options["local_index"]), device="cuda"
    )


def cuda_case(rows, globals_, pairs, chunk_size):
    return make_case(rows, 300, globals_=globals_, pairs=pairs, chunk_size=chunk_size, device="cuda")


@pytest.mark.parametrize("shape", SHAPES)
def test_repeatable_and_without_synchronisation(shape):
    case = cuda_case(*shape)
    grad = incoming(case)
    first = step(case, grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step(case, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_graph_capture(shape, monkeypatch):
    case = cuda_case(*shape)
    grad = incoming(case)
    expected = step(case, grad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, grad)
    for x in captured:
        x.zero_()
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(expected, captured, strict=True))


def test_memory_stays_linear_in_the_rows(monkeypatch):
    monkeypatch.undo()  # poisoning memory costs memory
    case = make_case(65536, 300, device="cuda")
    grad = incoming(case)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(case, grad)
    operands = 2 * case.a.numel() * 4
    assert torch.cuda.max_memory_allocated() - before < 3 * operands + 512 * 2**20
