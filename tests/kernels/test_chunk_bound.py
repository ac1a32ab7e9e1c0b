"""InfoNCE of short chunks in one launch: bound and gradients against the literal form in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import make_case

from infobert_fast import reference
from infobert_fast.kernels.chunk_bound import FEW_ROWS, chunk_bound, info_nce

NAMES = ("bound", "da", "db", "dw2", "db2")


def pairs_of(case):
    """Rows of a and b, pair by pair, and pairs per chunk."""
    options = case.options
    a, b = (
        x if index is None else x[index]
        for x, index in ((case.a, options["local_index"]), (case.b, options["pair_index"]))
    )
    return a, b, options["chunk_size"]


def literal(a, b, w2, b2, options):
    """The mean over chunks of mean_i F_ii - (logsumexp_j F_ij - log n), F = softplus(w2 . relu(a_j + b_i) + b2)."""
    local, global_, size = pairs_of(make_case(1, 1)._replace(a=a, b=b, options=options))
    bounds = []
    for x, y in zip(local.split(size), global_.split(size), strict=True):
        scores = torch.nn.functional.softplus(torch.relu(x[None] + y[:, None]) @ w2 + b2, threshold=50.0)
        bounds.append((scores.diagonal() - torch.logsumexp(scores, 1)).mean() + torch.tensor(float(len(x))).log())
    return torch.stack(bounds).mean()


def truth(case, dtype):
    leaves = [x.detach().to(dtype).requires_grad_() for x in case.operands]
    bound = literal(*leaves, case.options)
    return bound.detach(), *torch.autograd.grad(bound, leaves)


def run(case, need=(True,) * 4):
    return chunk_bound(*case.operands, *(case.options[k] for k in ORDER), need)


ORDER = ("local_index", "pair_index", "chunk_size")


def check(case):
    """The error never exceeds that of plain PyTorch in the same dtype by more than a small constant."""
    eps = torch.finfo(case.a.dtype).eps
    for name, out, exact, eager in zip(
        NAMES, run(case), truth(case, torch.float64), truth(case, case.a.dtype), strict=True
    ):
        assert out.shape == exact.shape, name
        error, budget = (out.double() - exact).abs().max(), (eager.double() - exact).abs().max()
        # terms of size one are subtracted from each other, in the bound and in each weight
        assert error <= 2 * budget + 8 * eps * exact.abs().max().clamp_min(1.0 if name == "bound" else 0.1), name


# every size with a chunk, every chunk with a size below, at and above it
@pytest.mark.parametrize(
    ("N", "chunk_size"),
    [
        (1, 7),
        (2, 1),
        (2, 32),
        (15, 16),
        (16, 7),
        (31, 32),
        (32, 32),
        (33, 32),
        (33, 16),
        (100, 33),
        (100, 64),
        (257, 32),
    ],
)
def test_sizes(N, chunk_size, device):
    check(make_case(N, 40, chunk_size=chunk_size, device=device))


@pytest.mark.parametrize("H", [1, 129, 300, 301])
@pytest.mark.parametrize("chunk_size", [7, 32, 64])
def test_hidden_sizes(H, chunk_size, device):
    check(make_case(20, H, globals_=9, pairs=chunk_size + 1, chunk_size=chunk_size, device=device))


@pytest.mark.parametrize("layout", ["plain", "strided", "transposed"])
@pytest.mark.parametrize("globals_", [9, FEW_ROWS + 6])
def test_layouts_and_indices(layout, globals_, device):
    case = make_case(33, 41, globals_=globals_, pairs=70, chunk_size=16, layout=layout, device=device)
    check(case)
    check(case._replace(a=case.a[:9], b=case.b[:9], options=case.options | {"local_index": None, "pair_index": None}))


@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_common_offset(layout, device):
    case = make_case(33, 40, offset=50.0, chunk_size=32, layout=layout, device=device)
    for name, out, exact in zip(NAMES, run(case), truth(case, torch.float64), strict=True):
        assert (out - exact).abs().max() <= 8e-6 * exact.abs().max().clamp_min(0.1), name


def test_lone_pairs_give_exactly_zero(device):
    for out in run(make_case(5, 8, chunk_size=1, device=device)):
        assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["a", "b"])
def test_not_finite_in_nan_out(bad, side, device):
    for chunk_size in (1, 8):
        case = make_case(20, 24, chunk_size=chunk_size, device=device)
        getattr(case, side)[9, 5] = bad
        bound, da, db, dw, db2 = run(case)
        assert all(x.isnan().all() for x in (bound, db2)), (bound, db2)
        assert all(x.isnan().any() for x in (da, db, dw))


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_needed(wanted, device):
    case = make_case(20, 24, globals_=9, pairs=30, chunk_size=8, device=device)
    full, alone = run(case), run(case, tuple(k == wanted for k in range(4)))
    assert torch.equal(alone[0], full[0])
    assert torch.equal(alone[1 + wanted], full[1 + wanted])
    assert all(gradient is None for k, gradient in enumerate(alone[1:]) if k != wanted)


def test_two_runs_give_the_same_bits(device):
    case = make_case(33, 40, globals_=9, pairs=70, chunk_size=32, device=device)
    for name, first, second in zip(NAMES, run(case), run(case), strict=True):
        assert torch.equal(first, second), name


@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(
    rows=st.integers(1, 40), globals_=st.integers(1, 70), H=st.integers(1, 24), pairs=st.integers(1, 90),
    chunk_size=st.sampled_from([1, 3, 16, 17, 33, 64]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(rows, globals_, H, pairs, chunk_size, seed):
    check(make_case(rows, H, globals_=globals_, pairs=pairs, chunk_size=chunk_size, seed=seed, device="cpu"))


def arguments(device, dtype=torch.float32):
    case = make_case(9, 5, globals_=4, pairs=14, chunk_size=4, dtype=dtype, device=device)
    return [x.requires_grad_() for x in case.operands], case.pairs


def test_opcheck(device):
    leaves, pairs = arguments(device)
    for need in ([True] * 4, [False, True, False, False]):
        inputs = [leaf.detach().requires_grad_(needed) for leaf, needed in zip(leaves, need, strict=True)]
        inputs += [pairs.local_index, pairs.pair_index, pairs.chunk_size, need]
        torch.library.opcheck(torch.ops.infobert_fast.chunk_info_nce.default, tuple(inputs))


def test_gradcheck(device):
    if device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    leaves, pairs = arguments(device, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, pairs), leaves, fast_mode=True)


def test_reference_agrees_with_the_literal_form(device):
    """The oracle of this file is the specification with the identity as its first layer."""
    case = make_case(9, 6, pairs=14, chunk_size=4, dtype=torch.float64, device="cpu")
    eye = torch.eye(6, dtype=torch.float64)
    expected = reference.info_nce(
        case.a, case.b, torch.cat([eye, eye], 1), torch.zeros(6, dtype=torch.float64), case.w2, case.b2, **case.options
    )
    torch.testing.assert_close(literal(*case.operands, case.options), expected)
