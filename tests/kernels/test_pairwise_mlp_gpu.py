"""What only a device can show: no host synchronisation, graph capture, memory, repeatability at full size.

The other files of this folder run on the device too when there is one.
"""

import pytest
import torch
from oracle import make_case
from sizes import SIZES

from infobert_fast import InfoNCE
from infobert_fast.kernels.chunk_bound import chunk_bound
from infobert_fast.kernels.pairwise_mlp import pairwise_mlp_backward, pairwise_mlp_forward

pytestmark = pytest.mark.gpu


def step(case, grad, precision="exact"):
    lse, scores = pairwise_mlp_forward(*case.operands, case.pairs, precision=precision)
    return lse, *pairwise_mlp_backward(grad, lse, *case.operands, case.pairs, scores=scores, precision=precision)


def incoming(case):
    return torch.ones(
        case.b.shape[0] if case.options["chunk_size"] is None else len(case.options["local_index"]), device="cuda"
    )


def cuda_case(rows, globals_, pairs, chunk_size):
    return make_case(rows, SIZES.width, globals_=globals_, pairs=pairs, chunk_size=chunk_size, device="cuda")


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("shape", SIZES.critic)
def test_repeatable_and_without_synchronisation(shape, precision):
    case = cuda_case(*shape)
    grad = incoming(case)
    first = step(case, grad, precision)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step(case, grad, precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("shape", SIZES.critic)
def test_graph_capture(shape, precision):
    case = cuda_case(*shape)
    grad = incoming(case)
    expected = step(case, grad, precision)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(case, grad, precision)
    for x in captured:
        x.zero_()
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(expected, captured, strict=True))


@pytest.mark.device_memory
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_memory_of_a_quarter_million_pairs(precision, monkeypatch):
    monkeypatch.undo()  # poisoning memory costs memory
    case = make_case(262144, 300, device="cuda")
    grad = incoming(case)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step(case, grad, precision)
    assert torch.cuda.max_memory_allocated() - before < 2e9
    assert all(x.isfinite().all() for x in results)


def test_the_fast_preset_keeps_its_published_errors():
    """The packed instructions and the products against the exact kernels, at the paper's width."""
    case = make_case(SIZES.published, SIZES.width, offset=50.0, device="cuda")
    grad = incoming(case) / SIZES.published
    exact, fast = (step(case, grad, precision) for precision in ("exact", "fast"))
    assert (fast[0] - exact[0]).abs().max() <= 2**-9 * case.w2.norm()
    for got, expected in zip(fast[1:], exact[1:], strict=True):
        assert (got - expected).norm() <= 2e-2 * expected.norm()
    with torch.no_grad():
        alone, _ = pairwise_mlp_forward(*case.operands, case.pairs, precision="fast", keep_scores=False)
    assert torch.equal(alone, fast[0])


def bound(case):
    return chunk_bound(*case.operands, *(case.options[k] for k in ("local_index", "pair_index", "chunk_size")), NEED)


NEED = (True,) * 4


@pytest.mark.parametrize("shape", SIZES.chunks)
def test_chunk_bound_is_repeatable_without_synchronisation_and_captured(shape):
    case = cuda_case(*shape)
    first = bound(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = bound(case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = bound(case)
    for x in captured:
        x.zero_()
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(first, captured, strict=True))


@pytest.mark.device_memory
def test_memory_of_a_quarter_million_pairs_in_chunks(monkeypatch):
    monkeypatch.undo()
    case = make_case(262144, 300, globals_=32, pairs=262144, chunk_size=32, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert all(x.isfinite().all() for x in bound(case))
    assert torch.cuda.max_memory_allocated() - before < 2e9


@pytest.mark.parametrize("chunked", [True, False])
def test_a_captured_training_pass(chunked):
    """The public function, forward and backward, replayed on other values."""
    torch.manual_seed(0)
    (rows, globals_, _, chunk_size), d = SIZES.critic[0], SIZES.features
    critic = InfoNCE(d, d, SIZES.width).cuda()
    local, sentence = (torch.randn(n, d, device="cuda", requires_grad=True) for n in (rows, globals_))
    owner = torch.arange(rows, device="cuda") * globals_ // rows
    inputs = [local, sentence, *critic.parameters()]

    def once():
        value = critic(local, sentence, pair_index=owner, chunk_size=chunk_size if chunked else None)
        return value, *torch.autograd.grad(value, inputs)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = once()
    with torch.no_grad():
        local.add_(1)
    graph.replay()
    for got, expected in zip(captured, once(), strict=True):
        torch.testing.assert_close(got, expected)
