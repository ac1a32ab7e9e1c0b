"""The dispatch to the Triton kernels: the same values and gradients through the public functions."""

import importlib.util

import pytest
import torch
import torch._dynamo.testing
from contrastive_cases import critic_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from infobert_fast import InfoNCE, functional
from infobert_fast.functional import implementation
from infobert_fast.kernels.pairs import Pairs

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


def test_short_chunks_compile_to_one_operator_for_any_number_of_pairs():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    critic, local, global_, indices = case(torch.float32)
    critic.implementation = "triton"
    compiled = torch.compile(critic, fullgraph=True, dynamic=True, backend=counter)
    for pairs in (33, 20, 17):
        some = {name: index[:pairs].clone() for name, index in indices.items()}
        inputs = [local, global_, *critic.parameters()]
        got, expected = (bound(local, global_, chunk_size=8, **some) for bound in (compiled, critic))
        for x, y in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs), strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)
    assert counter.frame_count == 1


class Operations(TorchDispatchMode):
    """Names of the operators that run; those that only look at a tensor are left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function.overloadpacket.__name__ not in ("detach", "empty", "ones_like"):
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_short_chunks_take_two_launches_forward_and_one_backward(monkeypatch):
    from infobert_fast.kernels import chunk_bound

    launched = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launch = self.kernel[grid]

            def run(*args, **kwargs):
                launched.append(1)
                with torch.utils._python_dispatch._disable_current_modes():  # the interpreter's own copies
                    return launch(*args, **kwargs)

            return run

    for name in ("chunk_bound_kernel", "gather_parts_kernel"):
        monkeypatch.setattr(chunk_bound, name, Counted(getattr(chunk_bound, name)))
    a, b = (torch.randn(n, 16, device=DEVICE, requires_grad=True) for n in (12, 3))
    w2, b2 = (torch.randn(n, device=DEVICE, requires_grad=True) for n in (16, 1))
    owner = torch.arange(12, device=DEVICE) // 4
    with Operations() as forward:
        bound = chunk_bound.info_nce(a, b, w2, b2, Pairs(12, None, owner, 4))
    assert len(launched) == 2
    assert forward.names == []
    with Operations() as backward:
        bound.backward()
    assert len(launched) == 2
    assert backward.names == ["_foreach_mul"]


@pytest.mark.parametrize("chunk_size", [8, None])
def test_one_bound_twice_in_a_graph_and_two_backwards(chunk_size):
    """What a forward keeps is neither scaled nor spent by a second use or a second backward."""
    critic, local, global_, indices = case(WIDE)
    critic.implementation = "triton"
    inputs = [local, global_, *critic.parameters()]
    bound = critic(local, global_, chunk_size=chunk_size, **indices)
    once = torch.autograd.grad(bound, inputs, retain_graph=True)
    twice = torch.autograd.grad(3 * bound + bound * bound.detach(), inputs, retain_graph=True)
    again = torch.autograd.grad(bound, inputs)
    for x, y, z in zip(once, twice, again, strict=True):
        assert torch.equal(x, z)
        torch.testing.assert_close(y, (3 + bound.detach()) * x)


@pytest.mark.parametrize("chunk_size", [8, None])
def test_two_bounds_of_one_critic_in_one_graph(chunk_size):
    critic, local, global_, indices = case(WIDE)
    results = []
    for critic.implementation in ("triton", "torch"):
        inputs = [local, global_, *critic.parameters()]
        other = critic(local * 2, global_, chunk_size=3, **indices)
        results.append(torch.autograd.grad(critic(local, global_, chunk_size=chunk_size, **indices) - other, inputs))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chunk_size", [8, None])
def test_autocast_computes_in_float32(chunk_size):
    critic, local, global_, indices = case(torch.float32)
    expected = run(critic, local, global_, "triton", chunk_size=chunk_size, **indices)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        bound = critic(local, global_, chunk_size=chunk_size, **indices)
    got = bound, *torch.autograd.grad(bound, [local, global_, *critic.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


@pytest.mark.parametrize("chunk_size", [8, None])
def test_a_gradient_of_the_inputs_alone(chunk_size):
    """What the training step takes before its one backward: no weight gradients, the same input gradients."""
    critic, local, global_, indices = case(torch.float32)
    critic.implementation = "triton"
    bound = critic(local, global_, chunk_size=chunk_size, **indices)
    (alone,) = torch.autograd.grad(bound, local, retain_graph=True)
    bound.backward()
    assert torch.equal(alone, local.grad)
    frozen = critic.requires_grad_(False)
    bound = frozen(local, global_, chunk_size=chunk_size, **indices)
    assert torch.equal(torch.autograd.grad(bound, local)[0], alone)


def test_precision_reaches_the_kernels():
    torch.manual_seed(0)
    a, b = (torch.randn(70, 64, device=DEVICE, requires_grad=True) for _ in range(2))
    w2, b2 = torch.randn(64, device=DEVICE) / 8, torch.zeros(1, device=DEVICE)
    (exact, exact_a, exact_b), (fast, fast_a, fast_b) = (
        (lse.detach(), *torch.autograd.grad(lse.mean(), (a, b)))
        for lse in (
            functional.pairwise_mlp_logsumexp(a, b, w2, b2, implementation="triton", precision=precision)
            for precision in ("exact", "fast")
        )
    )
    assert 0 < float((exact - fast).abs().max()) < 1e-3
    for x, y in ((exact_a, fast_a), (exact_b, fast_b)):
        assert 1e-5 * x.norm() < (x - y).norm() < 2e-2 * x.norm()  # not the exact backward, and near it


def test_auto_leaves_the_interpreter_to_those_who_ask(monkeypatch):
    if DEVICE == "cuda":
        pytest.skip("auto takes the kernels on a GPU")
    monkeypatch.setattr("infobert_fast.kernels.pairwise_mlp.logsumexp", lambda *_: pytest.fail("chosen"))
    critic, local, global_, indices = case(torch.float32)
    critic(local, global_, **indices)
    monkeypatch.delenv("TRITON_INTERPRET")
    critic.implementation = "triton"
    with pytest.raises(ValueError, match="`implementation` was 'triton', but the tensors are on cpu; use 'torch'"):
        critic(local, global_, **indices)


def test_triton_is_looked_for_once(monkeypatch):
    """Looking reads every folder of ``sys.path``."""
    looked, find = [], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: looked.append(name) or find(name))
    implementation._triton_installed.cache_clear()
    for _ in range(3):
        functional.info_nce(*critic_inputs(5, 5))
    assert looked == ["triton"]
