"""The registered operators: schema, fake implementation, autograd, and a whole graph with a dynamic number of pairs."""

import pytest
import torch
from oracle import make_case, values_and_gradients

from infobert_fast.kernels.operators import pairwise_mlp, pairwise_mlp_gradients

OPTIONS = [(None, None), (14, None), (14, 8)]


def arguments(pairs, chunk_size, dtype=torch.float32, device="cpu", rows=9, H=5):
    case = make_case(
        rows, H, globals_=4 if pairs else None, pairs=pairs, chunk_size=chunk_size, dtype=dtype, device=device
    )
    leaves = [x.requires_grad_() for x in case.operands]
    return case, (*leaves, case.options["local_index"], case.options["pair_index"], chunk_size)


@pytest.mark.parametrize(("pairs", "chunk_size"), OPTIONS)
def test_opcheck(pairs, chunk_size, device):
    case, inputs = arguments(pairs, chunk_size, device=device)
    torch.library.opcheck(pairwise_mlp, inputs)
    lse = pairwise_mlp(*inputs).detach()
    tensors = [x.detach() for x in case.operands]
    for need in ([True] * 4, [False, True, False, False]):
        torch.library.opcheck(pairwise_mlp_gradients, (torch.ones_like(lse), lse, *tensors, *inputs[4:], "exact", need))


@pytest.mark.parametrize(("pairs", "chunk_size"), [(None, None), (7, None), (7, 3)])
def test_gradcheck(pairs, chunk_size, device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    _, inputs = arguments(pairs, chunk_size, torch.float64, rows=5)
    assert torch.autograd.gradcheck(lambda *x: pairwise_mlp(*x, *inputs[4:]), inputs[:4], fast_mode=True)


def test_gradcheck_of_a_long_chunk(device, monkeypatch):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    monkeypatch.setattr("infobert_fast.kernels.pairwise_mlp.LONGEST", 0)
    _, inputs = arguments(3, 2, torch.float64, rows=2, H=3)
    assert torch.autograd.gradcheck(lambda *x: pairwise_mlp(*x, *inputs[4:]), inputs[:4], fast_mode=True)


def test_one_graph_for_any_number_of_pairs(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def bound(a, b, w2, b2):
        return pairwise_mlp(a, b, w2, b2).mean() + pairwise_mlp(a, a, w2, b2, None, None, 8).mean()

    for rows in (5, 9, 17):
        case = make_case(rows, 6, device=device)
        leaves = [x.requires_grad_() for x in case.operands]
        bound(*leaves).backward()
        (_, *exact), _ = values_and_gradients(case, torch.float64, torch.full((rows,), 1 / rows, device=device))
        doubled = case._replace(b=case.a, options=case.options | {"chunk_size": 8})
        (_, *more), _ = values_and_gradients(doubled, torch.float64, torch.full((rows,), 1 / rows, device=device))
        torch.testing.assert_close(leaves[0].grad.double(), exact[0] + more[0] + more[1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(leaves[2].grad.double(), exact[2] + more[2], rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 1


def test_only_needed_gradients(device):
    case = make_case(9, 5, device=device)
    b = case.b.requires_grad_()
    pairwise_mlp(case.a, b, case.w2, case.b2).sum().backward()
    assert b.grad is not None
    assert case.a.grad is None
    assert case.w2.grad is None
