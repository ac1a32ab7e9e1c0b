"""Values and gradients of the critic kernels against the literal form in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import make_case, values_and_gradients
from sizes import SIZES

from infobert_fast.kernels import pairwise_mlp, rectangles
from infobert_fast.kernels.fast_scores import half_operands, power_of_two
from infobert_fast.kernels.operands import centre
from infobert_fast.kernels.pairs import Pairs, Terms
from infobert_fast.kernels.pairwise_mlp import pairwise_mlp_backward, pairwise_mlp_forward

NAMES = ("lse", "da", "db", "dw2", "db2")
EPS = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 2**-52}


def run(case, grad, *, keep_scores=True, need=(True,) * 4, precision="exact"):
    lse, scores = pairwise_mlp_forward(*case.operands, case.pairs, keep_scores=keep_scores, precision=precision)
    return lse, *pairwise_mlp_backward(
        grad, lse, *case.operands, case.pairs, scores=scores, precision=precision, need=need
    )


def check(case, *, keep_scores=True, constant=2.0):
    """The kernels' error never exceeds that of plain PyTorch in the same dtype by more than a small constant."""
    dtype = case.a.dtype
    truth, grad = values_and_gradients(case, torch.float64)
    plain, _ = values_and_gradients(case, dtype, grad)
    ours = run(case, grad.float() if dtype != torch.float64 else grad.double(), keep_scores=keep_scores)
    for name, out, exact, eager in zip(NAMES, ours, truth, plain, strict=True):
        assert out.shape == exact.shape, name
        assert out.dtype == (torch.promote_types(dtype, torch.float32) if name == "lse" else dtype), name
        error, budget = (out.double() - exact).abs(), (eager.double() - exact).abs().max()
        scale = exact.abs().max()
        # in float64 the plain form is the truth itself
        rounding = (64 if dtype == torch.float64 else 4) * EPS[dtype]
        assert error.max() <= constant * budget + rounding * scale, (name, error.max(), budget, scale)


@pytest.mark.parametrize("N", [1, 2, 15, 16, 31, 32, 33, 100, 257])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 32])
def test_sizes(N, chunk_size, device):
    check(make_case(N, 40, chunk_size=chunk_size, device=device))


@pytest.mark.parametrize("H", SIZES.hidden)
@pytest.mark.parametrize(("N", "chunk_size"), [(1, None), (2, None), (33, None), (15, 7), (33, 32), (2, 1), (100, 32)])
def test_hidden_sizes(N, H, chunk_size, device):
    check(make_case(N, H, chunk_size=chunk_size, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("chunk_size", [None, 32])
def test_dtypes(dtype, chunk_size, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("float64 runs under the interpreter only")
    check(make_case(33, 40, pairs=45, chunk_size=chunk_size, dtype=dtype, device=device))


@pytest.mark.parametrize("layout", ["strided", "transposed"])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_layouts(layout, chunk_size, device):
    check(make_case(33, 41, chunk_size=chunk_size, layout=layout, device=device))
    check(make_case(33, 41, globals_=9, pairs=40, chunk_size=chunk_size, layout=layout, device=device))


@pytest.mark.parametrize("keep_scores", [True, False])
@pytest.mark.parametrize(
    ("rows", "globals_", "pairs", "chunk_size"),
    [
        (50, 9, None, None),
        (9, 50, None, None),
        (20, 9, 70, None),
        (20, 9, 70, 32),
        (20, 9, 70, 7),
        (70, 50, 140, 66),
        (3, 2, 5, 64),
    ],
)
def test_rectangles_and_indices(rows, globals_, pairs, chunk_size, keep_scores, device):
    check(
        make_case(rows, 40, globals_=globals_, pairs=pairs, chunk_size=chunk_size, device=device),
        keep_scores=keep_scores,
    )


def test_permuted_pairs_give_permuted_results(device):
    case = make_case(40, 24, chunk_size=16, device=device)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).to(device)
    moved = case._replace(a=case.a[order], b=case.b[order])
    indexed = case._replace(options=case.options | {"local_index": order, "pair_index": order})
    grad = torch.linspace(-1, 1, 40, device=device)
    for name, there, here in zip(NAMES, run(moved, grad), run(indexed, grad), strict=True):
        if name in ("da", "db"):
            here = here[order]
        assert torch.equal(there, here), name


@pytest.mark.parametrize("keep_scores", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 20])
def test_weights_in_several_blocks(chunk_size, keep_scores, device, monkeypatch):
    """The backward pass of a large problem works block by block: by rows of one problem, and by groups of problems."""
    monkeypatch.setattr(pairwise_mlp, "LONGEST", 0)
    monkeypatch.setattr(rectangles, "BLOCK_BYTES", 2 * 4 * 128 * 64)
    check(make_case(90, 40, chunk_size=chunk_size, device=device), keep_scores=keep_scores)


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("chunk_size", [None, 66])
def test_scores_are_kept_below_a_budget_and_made_again_above(chunk_size, precision, device, monkeypatch):
    case = make_case(70, 24, chunk_size=chunk_size, device=device)
    p = rectangles.problems_of(case.a, case.b, case.pairs)
    size = 4 * p.problems * p.pad_i * p.pad_j
    results = []
    for budget in (size, size - 1):
        monkeypatch.setattr(rectangles, "KEEP_BYTES", budget)
        lse, scores = pairwise_mlp_forward(*case.operands, case.pairs, precision=precision)
        assert (scores is not None) == (budget == size)
        grad = torch.linspace(-1, 1, 70, device=device)
        results.append(pairwise_mlp_backward(grad, lse, *case.operands, case.pairs, scores=scores, precision=precision))
    for name, kept, again in zip(NAMES[1:], *results, strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_split_sums_are_held_of_one_block_alone(precision, device, monkeypatch):
    """128 columns in two splits, over blocks of 32 rows: two sums of all 256 rows would be the largest tensor, and of
    262,144 rows, with 38 splits, 12 GB."""
    monkeypatch.setattr(rectangles, "BLOCK_BYTES", 2 * 4 * 128 * 32)
    sizes, empty = [], torch.empty

    def recorded(*args, **kwargs):
        out = empty(*args, **kwargs)
        sizes.append(out.numel())
        return out

    case, grad = make_case(128, 64, globals_=256, device=device), torch.ones(256, device=device)
    monkeypatch.setattr(torch, "empty", recorded)
    run(case, grad, precision=precision, keep_scores=False, need=(False, True, False, False))
    assert 256 * 64 <= max(sizes) < 2 * 256 * 64


def test_wide_rows(device):
    """More columns than one tile of the four-warp configuration."""
    check(make_case(2100, 3, globals_=5, device=device))


@pytest.mark.parametrize("chunk_size", [None, 7, 66])
@pytest.mark.parametrize("rows", [0, 3])
def test_no_pairs(chunk_size, rows, device):
    case = make_case(rows, 4, globals_=3, device=device)
    pairs = Pairs(0, torch.empty(0, dtype=torch.int64, device=device), chunk_size=chunk_size)
    lse, scores = pairwise_mlp_forward(*case.operands, pairs)
    assert torch.equal(lse, torch.full((3 if chunk_size is None else 0,), float("-inf"), device=device))
    for x, gradient in zip(
        case.operands, pairwise_mlp_backward(lse, lse, *case.operands, pairs, scores=scores), strict=True
    ):
        assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("layout", ["plain", "strided"])
@pytest.mark.parametrize("chunk_size", [None, 32])
def test_common_offset_costs_no_digits(chunk_size, layout, device):
    """Local rows at +50, global rows at -50: the sums a + b are ordinary, and so must the errors be."""
    case = make_case(33, 40, offset=50.0, chunk_size=chunk_size, layout=layout, device=device)
    truth, grad = values_and_gradients(case, torch.float64)
    ours = run(case, grad.float())
    for name, out, exact in zip(NAMES, ours, truth, strict=True):
        assert (out - exact).abs().max() <= 4e-6 * exact.abs().max(), name


@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(
    ("rows", "H", "globals_", "pairs", "chunk_size"),
    [
        (1, 1, 1, None, None),
        (33, 40, 33, None, None),
        (33, SIZES.hidden[-1], 5, None, None),
        (20, 33, 9, 70, None),
        (70, 24, 50, 140, 66),
    ],
)
def test_fast_preset(rows, H, globals_, pairs, chunk_size, offset, device):
    """Independent roundings of each unit's a, b and a + b to fp16: errors of about 2^-11 times the norm of w2."""
    case = make_case(rows, H, globals_=globals_, pairs=pairs, chunk_size=chunk_size, offset=offset, device=device)
    truth, grad = values_and_gradients(case, torch.float64)
    lse, scores = pairwise_mlp_forward(*case.operands, case.pairs, precision="fast")
    assert torch.equal(lse, pairwise_mlp_forward(*case.operands, case.pairs, precision="fast", keep_scores=False)[0])
    assert (lse - truth[0]).abs().max() <= 2**-9 * case.w2.norm()
    # The masks are those of the rounded rows: where a + b is within a rounding of zero a unit counts or does not, as a
    # whole. Against the literal form of the same rows only the scores' errors are left, which weigh the pairs.
    p = rectangles.problems_of(case.a, case.b, Pairs(rows))
    A, B, _, scale = half_operands(case.a, case.b, case.w2, p)
    unscale = (scale * power_of_two(case.w2.abs().amax(), 10)).double()
    shift = centre(case.a, case.b, torch.float32).double()
    rounded = case._replace(
        a=A[: case.a.shape[0], :H].double() * unscale + shift, b=B[: case.b.shape[0], :H].double() * unscale - shift
    )
    same_rows, _ = values_and_gradients(rounded, torch.float64, grad)
    half, _ = values_and_gradients(case, torch.float16, grad)
    for kept in (scores, None):
        gradients = pairwise_mlp_backward(grad, lse, *case.operands, case.pairs, scores=kept, precision="fast")
        for name, out, exact, same, plain in zip(NAMES[1:], gradients, truth[1:], same_rows[1:], half[1:], strict=True):
            assert (out - same).abs().max() <= 6e-4 * same.abs().max(), name
            assert (out - exact).norm() <= 2 * (plain.double() - exact).norm() + 2e-3 * exact.norm(), name
        for out, first in zip(
            gradients,
            pairwise_mlp_backward(grad, lse, *case.operands, case.pairs, scores=kept, precision="fast"),
            strict=True,
        ):
            assert torch.equal(out, first)


@pytest.mark.parametrize("chunk_size", [None, 20])
def test_fast_weights_in_several_blocks(chunk_size, device, monkeypatch):
    monkeypatch.setattr(pairwise_mlp, "LONGEST", 0)
    case = make_case(90, 24, chunk_size=chunk_size, device=device)
    grad = torch.linspace(-1, 1, 90, device=device)
    whole = run(case, grad, precision="fast")
    monkeypatch.setattr(rectangles, "BLOCK_BYTES", 2 * 4 * 128 * 64)
    for keep_scores in (True, False):
        blocks = run(case, grad, precision="fast", keep_scores=keep_scores)
        for name, out, expected in zip(NAMES, blocks, whole, strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_fast_preset_outside_the_range_of_fp16(device):
    case = make_case(33, 24, device=device)
    large = case._replace(a=case.a * 1e6, b=case.b * 1e6, w2=case.w2 * 1e-6)
    small, _ = pairwise_mlp_forward(*case.operands, case.pairs, precision="fast")
    lse, _ = pairwise_mlp_forward(*large.operands, large.pairs, precision="fast")
    assert (lse - small).abs().max() <= 1e-3


def test_unknown_precision(device):
    with pytest.raises(ValueError, match="precision"):
        pairwise_mlp_forward(*make_case(2, 2, device=device).operands, Pairs(2), precision="half")
    terms = Terms(clip=1.0)
    with pytest.raises(ValueError, match="chunks take every score as it is"):
        pairwise_mlp_forward(*make_case(2, 2, device=device).operands, Pairs(2, chunk_size=1, terms=terms))


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_not_finite_in_nan_out(bad, side, chunk_size, precision, device):
    case = make_case(20, 24, chunk_size=chunk_size, device=device)
    getattr(case, side)[9, 5] = bad
    lse, *gradients = run(case, torch.ones(20, device=device), precision=precision)
    row = slice(8, 16) if side == "a" and chunk_size else slice(None) if side == "a" else 9
    assert lse[row].isnan().all()
    assert gradients[2].isnan().any()
    assert gradients[3].isnan().all()
    assert all(gradient.isnan().any() for gradient in gradients)


@pytest.mark.parametrize("chunk_size", [None, 7, 32])
def test_two_runs_give_the_same_bits(chunk_size, device):
    case = make_case(33, 40, pairs=60, chunk_size=chunk_size, device=device)
    grad = torch.randn(33 if chunk_size is None else 60, generator=torch.Generator().manual_seed(2)).to(device)
    for name, first, second in zip(NAMES, run(case, grad), run(case, grad), strict=True):
        assert torch.equal(first, second), name


@pytest.mark.parametrize(
    ("owner", "keep_scores", "clip", "precision"),
    [
        ("own", True, None, "exact"),
        ("own", False, 2.5, "exact"),
        ("shared", True, 2.5, "fast"),
        ("shared", False, None, "fast"),
    ],
)
def test_terms(owner, keep_scores, clip, precision, device, monkeypatch):
    """Sums that leave out a row's own pairs, and clip: two tiles of columns of which the first may hold no term, and
    row 3, which no pair is left for."""
    monkeypatch.setattr(rectangles, "BLOCK_BYTES", 2 * 4 * 256 * 32)
    case = make_case(140, 8, globals_=40, device=device)
    columns = torch.arange(140, device=device) % 40 if owner == "own" else torch.full((140,), 3, device=device)
    pairs = Pairs(140, terms=Terms(columns, clip=clip))
    leaves = [x.detach().double().requires_grad_() for x in case.operands]
    u = torch.relu(leaves[0][None] + leaves[1][:, None]) @ leaves[2] + leaves[3]
    u = u if clip is None else u.clamp(-clip, clip)
    kept = columns[None] != torch.arange(40, device=device)[:, None]
    rows = kept.any(1)
    exact = torch.logsumexp(u[rows].masked_fill(~kept[rows], -torch.inf), 1)
    grad = torch.linspace(-1, 2, 40, device=device) * rows
    expected = [exact.detach(), *torch.autograd.grad(exact, leaves, grad[rows].double())]
    lse, scores = pairwise_mlp_forward(*case.operands, pairs, keep_scores=keep_scores, precision=precision)
    got = [lse[rows], *pairwise_mlp_backward(grad, lse, *case.operands, pairs, scores=scores, precision=precision)]
    assert (lse[~rows] == -torch.inf).all()
    for name, out, right in zip(NAMES, got, expected, strict=True):
        error = (out - right).norm() / right.norm()
        # a score near the clip falls on either side of it once its operands are rounded to fp16
        assert error < (2e-6 if precision == "exact" else 0.05 if clip else 0.01), name


@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_needed(wanted, chunk_size, device):
    case = make_case(20, 24, pairs=30, chunk_size=chunk_size, device=device)
    grad = torch.ones(20 if chunk_size is None else 30, device=device)
    full = run(case, grad)[1:]
    alone = run(case, grad, need=tuple(k == wanted for k in range(4)))[1:]
    assert torch.equal(alone[wanted], full[wanted])
    assert all(gradient is None for k, gradient in enumerate(alone) if k != wanted)


@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(
    rows=st.integers(1, 40), globals_=st.integers(1, 40), H=st.integers(1, 24), pairs=st.integers(1, 90),
    chunk_size=st.sampled_from([None, 1, 3, 17, 64, 65]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(rows, globals_, H, pairs, chunk_size, seed):
    check(
        make_case(rows, H, globals_=globals_, pairs=pairs, chunk_size=chunk_size, seed=seed, device="cpu"), constant=3.0
    )
