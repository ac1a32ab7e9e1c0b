"""The dispatch to the Triton kernels: the same values and gradients through the public functions."""

import pytest
import torch

from infobert_fast import InfoNCE, functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without a GPU the kernels run in Triton's interpreter
WIDE = torch.float32 if DEVICE == "cuda" else torch.float64


def case(dtype):
    torch.manual_seed(0)
    local = torch.randn(40, 7, dtype=dtype, device=DEVICE, requires_grad=True)
    global_ = torch.randn(9, 5, dtype=dtype, device=DEVICE, requires_grad=True)
    indices = {
        "local_index": torch.randint(40, (33,), device=DEVICE),
        "pair_index": torch.randint(9, (33,), device=DEVICE),
    }
    return InfoNCE(7, 5, 40).to(DEVICE, dtype), local, global_, indices


def run(critic, local, global_, implementation, **options):
    critic.implementation = implementation
    bound = critic(local, global_, **options)
    return bound, *torch.autograd.grad(bound, [local, global_, *critic.parameters()])


@pytest.mark.parametrize("dtype", [WIDE, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 40])
def test_kernels_equal_pytorch(dtype, chunk_size):
    critic, local, global_, indices = case(dtype)
    fused = run(critic, local, global_, "triton", chunk_size=chunk_size, **indices)
    plain = run(critic, local, global_, "torch", chunk_size=chunk_size, **indices)
    # Both compute in float32 at least and round gradients to the inputs' dtype once.
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for got, expected in zip(fused, plain, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=tolerance * float(expected.detach().abs().max()) + 1e-7, rtol=0)


def test_the_kernels_are_what_runs(monkeypatch):
    from infobert_fast.kernels import pairwise_mlp

    critic, local, global_, indices = case(torch.float32)
    calls = []
    forward = pairwise_mlp.pairwise_mlp_forward
    monkeypatch.setattr(pairwise_mlp, "pairwise_mlp_forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    critic.implementation = "torch"
    critic(local, global_, **indices)
    assert not calls
    critic.implementation = "triton"
    critic(local, global_, **indices)
    assert calls


def test_compiled_graphs_hold_the_registered_operator():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    critic, local, global_, indices = case(torch.float32)
    critic.implementation = "triton"
    compiled = torch.compile(critic, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(local, global_, **indices), critic(local, global_, **indices))
    assert any("infobert_fast.pairwise_mlp" in str(node.target) for node in graphs[0].graph.nodes)


def test_precision_reaches_the_kernels():
    torch.manual_seed(0)
    a, b = (torch.randn(80, 300, device=DEVICE) for _ in range(2))
    w2, b2 = torch.randn(300, device=DEVICE) / 17, torch.zeros(1, device=DEVICE)
    exact, fast = (
        functional.pairwise_mlp_logsumexp(a, b, w2, b2, implementation="triton", precision=precision)
        for precision in ("exact", "fast")
    )
    difference = float((exact - fast).abs().max())
    assert 0 < difference < 1e-3


def test_auto_leaves_the_interpreter_to_those_who_ask(monkeypatch):
    if DEVICE == "cuda":
        pytest.skip("auto takes the kernels on a GPU")
    monkeypatch.setattr("infobert_fast.functional.fused.pairwise_mlp_logsumexp", lambda *_: pytest.fail("chosen"))
    critic, local, global_, indices = case(torch.float32)
    critic(local, global_, **indices)
    monkeypatch.delenv("TRITON_INTERPRET")
    critic.implementation = "triton"
    with pytest.raises(ValueError, match="`implementation` was 'triton', but the tensors are on cpu; use 'torch'"):
        critic(local, global_, **indices)
