"""The critic's declared operator: schema, fake implementation, autograd, and a whole graph with a dynamic number of
pairs."""

import pytest
import torch
from oracle import make_case, values_and_gradients

from infobert_fast.kernels.pairs import Pairs, Terms
from infobert_fast.kernels.pairwise_mlp import logsumexp

OPTIONS = [(None, None, False), (14, None, False), (14, 8, False), (14, None, True)]


def arguments(pairs, chunk_size, dtype=torch.float32, device="cpu", rows=9, H=5):
    case = make_case(
        rows, H, globals_=4 if pairs else None, pairs=pairs, chunk_size=chunk_size, dtype=dtype, device=device
    )
    return [x.requires_grad_() for x in case.operands], case.pairs


def terms_of(pairs, left_out):
    return Terms(pairs.pair_index, clip=0.5) if left_out else Terms()


@pytest.mark.parametrize(("pairs", "chunk_size", "left_out"), OPTIONS)
def test_opcheck(pairs, chunk_size, left_out, device):
    leaves, pairs = arguments(pairs, chunk_size, device=device)
    terms = terms_of(pairs, left_out)
    meeting = pairs.local_index, pairs.pair_index, terms.columns, pairs.chunk_size, terms.clip
    torch.library.opcheck(torch.ops.infobert_fast.pairwise_mlp.default, (*leaves, *meeting, "exact", False))


@pytest.mark.parametrize(
    ("pairs", "chunk_size", "left_out"), [(None, None, False), (7, None, False), (7, 3, False), (7, None, True)]
)
def test_gradcheck(pairs, chunk_size, left_out, device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    leaves, pairs = arguments(pairs, chunk_size, torch.float64, rows=5)
    pairs = pairs._replace(terms=terms_of(pairs, left_out))
    assert torch.autograd.gradcheck(lambda *x: logsumexp(*x, pairs, "exact"), leaves, fast_mode=True)


def test_gradcheck_of_a_long_chunk(device, monkeypatch):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    monkeypatch.setattr("infobert_fast.kernels.pairwise_mlp.LONGEST", 0)
    leaves, pairs = arguments(3, 2, torch.float64, rows=2, H=3)
    assert torch.autograd.gradcheck(lambda *x: logsumexp(*x, pairs, "exact"), leaves, fast_mode=True)


def test_one_graph_for_any_number_of_pairs(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def bound(a, b, w2, b2):
        whole = logsumexp(a, b, w2, b2, Pairs(a.shape[0]), "exact")
        return whole.mean() + logsumexp(a, a, w2, b2, Pairs(a.shape[0], chunk_size=8), "exact").mean()

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
    logsumexp(case.a, b, case.w2, case.b2, case.pairs, "exact").sum().backward()
    assert b.grad is not None
    assert case.a.grad is None
    assert case.w2.grad is None
