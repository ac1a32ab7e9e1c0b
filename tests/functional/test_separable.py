"""InfoNCE with separable critics against the literal N x N form: both implementations, values and all gradients."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from contrastive_cases import F64, assert_no_worse_than_eager, assert_same, indices, value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import dot_blocks, separable_info_nce

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # without a GPU the kernels run in Triton's interpreter
CRITICS = ["dot", "cosine", "bilinear"]
KERNELS = pytest.mark.skipif(torch.cuda.is_available(), reason="float64 runs under the interpreter only")
IMPLEMENTATIONS = ["torch", pytest.param("triton", marks=KERNELS)]


def operands(critic: str, rows: int, distinct: int, seed: int = 0):
    """local, global_, scale and, for the bilinear critic, its weight, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64).to(DEVICE)

    y_dim = 5 if critic == "bilinear" else 7
    inputs = [normal(rows, 7), normal(distinct, y_dim), torch.tensor(1.7, dtype=F64, device=DEVICE)]
    return [*inputs, 0.2 * normal(7, 5)] if critic == "bilinear" else inputs


def device_indices(*arguments):
    return tuple(index.to(DEVICE) for index in indices(*arguments))


def bound_of(function, critic: str, **options):
    """The bound as a function of the tensors of ``operands``."""

    def bound(local, global_, scale, weight=None):
        return function(local, global_, critic=critic, scale=scale, weight=weight, **options)

    return bound


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(("critic", "pairs"), [("dot", 33), ("cosine", 33), ("bilinear", 33), ("dot", 2), ("dot", 130)])
def test_equals_the_oracle(critic, pairs, indexed, symmetric, implementation):
    rows, distinct = (pairs // 2 + 1, pairs // 8 + 1) if indexed else (pairs, pairs)
    index = device_indices(pairs, rows, distinct) if indexed else (None, None)
    options = {"local_index": index[0], "pair_index": index[1], "symmetric": symmetric}
    inputs = operands(critic, rows, distinct)
    got = value_and_grads(bound_of(separable_info_nce, critic, implementation=implementation, **options), inputs)
    assert_same(got, value_and_grads(bound_of(reference.separable_info_nce, critic, **options), inputs))
    assert got[0] <= math.log(pairs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("labels", ["some", "all", "none"])
def test_pairs_of_one_label_are_no_negatives(labels, symmetric, implementation):
    pairs = 70
    given_labels = {
        "some": torch.randint(-2, 3, (pairs,), generator=torch.Generator().manual_seed(0)),
        "all": torch.zeros(pairs, dtype=torch.int64),
        "none": torch.randperm(pairs, generator=torch.Generator().manual_seed(0)),
    }[labels]
    options = {"labels": given_labels.to(DEVICE), "symmetric": symmetric, "pair_index": device_indices(pairs, 9, 9)[1]}
    inputs = operands("dot", pairs, 9)
    got = value_and_grads(bound_of(separable_info_nce, "dot", implementation=implementation, **options), inputs)
    if labels == "all":
        assert all((tensor == 0).all() for tensor in got), "nothing to contrast with: exactly 0, and no gradient"
        return
    assert_same(got, value_and_grads(bound_of(reference.separable_info_nce, "dot", **options), inputs))
    if labels == "none":
        del options["labels"]
        assert_same(got, value_and_grads(bound_of(reference.separable_info_nce, "dot", **options), inputs))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scores", [12, 40, 10_000])
def test_blocks_of_any_size_give_the_same_result(monkeypatch, scores, implementation):
    """9 x 14 scores in blocks of some rows and some columns."""
    from infobert_fast.kernels import separable

    monkeypatch.setattr(dot_blocks, "block_scores", lambda device: scores)
    monkeypatch.setattr(separable, "BLOCK_SCORES", scores)
    for name, cut in (("torch", lambda i, j: dot_blocks._blocks(torch.empty(i, 1), torch.empty(j, 1))),
                      ("triton", separable.blocks)):  # fmt: skip
        for i, j in ((9, 14), (14, 9), (1, 5), (5, 1)):
            cells = [
                cell for rows, columns in cut(i, j) for cell in itertools.product(range(i)[rows], range(j)[columns])
            ]
            assert sorted(cells) == list(itertools.product(range(i), range(j))), name
            assert all((r.stop - r.start) * (c.stop - c.start) <= scores for r, c in cut(i, j))
    labels = torch.tensor([0, 1, 2, 3] * 3 + [0, 0], device=DEVICE)
    options = {"labels": labels, "symmetric": True}
    inputs = operands("dot", 14, 14)
    got = value_and_grads(bound_of(separable_info_nce, "dot", implementation=implementation, **options), inputs)
    assert_same(got, value_and_grads(bound_of(reference.separable_info_nce, "dot", **options), inputs))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation, symmetric):
    inputs = [tensor.requires_grad_() for tensor in operands("bilinear", 5, 5)]
    bound = bound_of(separable_info_nce, "bilinear", implementation=implementation, symmetric=symmetric)
    assert torch.autograd.gradcheck(bound, inputs, fast_mode=True)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("critic", CRITICS)
def test_is_no_worse_than_eager(critic, dtype, implementation):
    inputs = operands(critic, 65, 65)
    options = {"symmetric": True}
    fast = bound_of(separable_info_nce, critic, implementation=implementation, **options)
    literal = bound_of(reference.separable_info_nce, critic, **options)
    assert_no_worse_than_eager(fast, literal, inputs, dtype)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_small_weights_survive_half_precision(implementation):
    """512 pairs of near-equal scores, a loss of 5e-3 of the bound: weights of 2e-8 are below fp16's smallest number."""
    inputs = [0.1 * operands("dot", 512, 512, seed)[0] for seed in range(2)]
    inputs.append(torch.tensor(1.0, device=DEVICE))
    inputs = [tensor.half().float() for tensor in inputs]

    def loss(function, **options):
        bound = bound_of(function, "dot", **options)
        return lambda *tensors: 5e-3 * bound(*tensors)

    with torch.autocast(DEVICE, torch.float16):
        got = value_and_grads(loss(separable_info_nce, implementation=implementation), inputs, torch.float32)
    exact = value_and_grads(loss(reference.separable_info_nce), inputs, F64)
    assert_same(got[1:3], exact[1:3], tolerance=2e-3)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes_of_value_and_gradients(dtype, implementation):
    bound = bound_of(separable_info_nce, "bilinear", implementation=implementation)
    value, *grads = value_and_grads(bound, operands("bilinear", 5, 5), dtype)
    assert value.dtype == torch.float32
    assert all(grad.dtype == dtype for grad in grads)


def test_autocast_takes_products_in_its_dtype():
    inputs = [tensor.float() for tensor in operands("cosine", 40, 40)]
    bound = bound_of(separable_info_nce, "cosine", symmetric=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        rounded = value_and_grads(bound, inputs, torch.float32)
        mixed = bound(inputs[0].bfloat16(), *inputs[1:])
    assert all(tensor.dtype == torch.float32 for tensor in rounded)
    assert not torch.equal(rounded[0], bound(*inputs))
    assert_same(rounded, value_and_grads(bound, inputs, torch.float32), tolerance=0.03)
    torch.testing.assert_close(mixed, rounded[0], rtol=0.02, atol=0)
    with pytest.raises(TypeError, match=r"`global_` has dtype torch.float32 and `local` torch.bfloat16"):
        bound(inputs[0].bfloat16(), *inputs[1:])


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_backward_within_autocast_has_the_bits_of_one_outside(implementation):
    """The scores made again must be those of the forward pass, not rounded to autocast's dtype once more."""
    inputs = [tensor.float().requires_grad_() for tensor in operands("dot", 40, 40)]
    with torch.autocast(DEVICE, torch.bfloat16):
        value = bound_of(separable_info_nce, "dot", implementation=implementation)(*inputs)
        within = torch.autograd.grad(value, inputs, retain_graph=True)
    assert all(map(torch.equal, within, torch.autograd.grad(value, inputs)))


def test_it_is_the_loss_of_clip_and_of_simcse():
    image, text, scale = (tensor.float() for tensor in operands("cosine", 24, 24))
    logits = scale * torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).t()
    own = torch.arange(24, device=DEVICE)
    losses = [torch.nn.functional.cross_entropy(table, own) for table in (logits, logits.t())]  # SimCSE's, the other
    bound = bound_of(separable_info_nce, "cosine")
    torch.testing.assert_close(math.log(24) - bound(image, text, scale), losses[0])
    bound = bound_of(separable_info_nce, "cosine", symmetric=True)
    torch.testing.assert_close(math.log(24) - bound(image, text, scale), sum(losses) / 2)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_large_scores_neither_overflow_nor_vanish(implementation):
    """Scores of +-1,000 under one maximum for a tile's rows and columns would be exp(-2000) = 0."""
    x = torch.diag(torch.linspace(-30, 30, 9, device=DEVICE))
    bound = bound_of(separable_info_nce, "dot", implementation=implementation, symmetric=True)
    got = value_and_grads(bound, [x, x, torch.tensor(1.1, device=DEVICE)], torch.float32)
    exact = value_and_grads(
        bound_of(reference.separable_info_nce, "dot", symmetric=True), [x, x, torch.tensor(1.1, device=DEVICE)]
    )
    assert_same(got, exact, tolerance=1e-5)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_in_gives_nan_out(poison, position, implementation):
    inputs = [tensor.float() for tensor in operands("dot", 6, 6)]
    inputs[position].view(-1)[-1] = poison
    value, *grads = value_and_grads(
        bound_of(separable_info_nce, "dot", implementation=implementation, symmetric=True), inputs, torch.float32
    )
    assert not value.isfinite()
    assert all(not grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_two_runs_give_the_same_bits_and_leave_inputs_as_they_were(implementation):
    inputs = [tensor.float() for tensor in operands("dot", 200, 7)]
    copies = [tensor.clone() for tensor in inputs]
    pair_index = device_indices(200, 7, 7)[1]
    bound = bound_of(separable_info_nce, "dot", implementation=implementation, symmetric=True, pair_index=pair_index)
    runs = [value_and_grads(bound, inputs, torch.float32) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(first, again) for first, again in zip(runs[0], run, strict=True))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("needed", range(3))
def test_gradient_of_one_input_alone(needed, implementation):
    inputs = [tensor.float() for tensor in operands("dot", 9, 9)]
    bound = bound_of(separable_info_nce, "dot", implementation=implementation)
    expected = value_and_grads(bound, inputs, torch.float32)[1 + needed]
    leaf = inputs[needed].clone().requires_grad_()
    (got,) = torch.autograd.grad(bound(*inputs[:needed], leaf, *inputs[needed + 1 :]), leaf)
    torch.testing.assert_close(got, 1 * expected / 1, rtol=1e-6, atol=1e-7)


def test_memory_is_that_of_a_block(monkeypatch):
    """The largest tensor that a forward and a backward of 200 x 200 scores make, of rows 5 wide."""
    monkeypatch.setattr(dot_blocks, "block_scores", lambda device: 1600)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            parts = out if isinstance(out, (tuple, list)) else [out]
            sizes.extend(part.untyped_storage().nbytes() // 8 for part in parts if isinstance(part, torch.Tensor))
            return out

    inputs = [normal[:, :5] for normal in operands("dot", 200, 200)[:2]]
    inputs.append(torch.tensor(1.7, dtype=F64, device=DEVICE))
    labels = torch.arange(200, device=DEVICE) // 2
    with Watch():
        value_and_grads(bound_of(separable_info_nce, "dot", labels=labels, symmetric=True), inputs)
    assert max(sizes) == 1600


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_a_zero_row_has_no_direction(implementation):
    """Its scores are 0, which gives the others' the bound below, and no gradient pulls at it."""
    x, y = (torch.eye(3, dtype=F64, device=DEVICE).requires_grad_() for _ in range(2))
    with torch.no_grad():
        x[2], y[1] = 0, 0
    bound = separable_info_nce(x, y, critic="cosine", scale=2.0, implementation=implementation)
    # rows of scores for y = (e0, 0, e2), over x = (e0, e1, 0): (2, 0, 0), zeros, zeros
    expected = (2 - math.log(math.exp(2) + 2) + math.log(3)) / 3
    assert bound.item() == pytest.approx(expected, abs=1e-12)
    gradients = torch.autograd.grad(bound, (x, y))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][2].abs().max() == gradients[1][1].abs().max() == 0


@pytest.mark.parametrize("blocks", [1, 4])
def test_scores_that_fit_are_kept(monkeypatch, blocks):
    """The same bits as scores made again, and one product a block fewer; nothing is kept beyond a limit."""
    monkeypatch.setattr(dot_blocks, "block_scores", lambda device: 24 * 24 // blocks)
    inputs = [normal[:, :5].to(DEVICE) for normal in operands("dot", 24, 24)[:2]]
    inputs.append(torch.tensor(1.7, dtype=F64, device=DEVICE))
    labels = torch.arange(24, device=DEVICE) // 2
    results, products = [], []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            products[-1] += function is torch.ops.aten.mm.default
            return function(*args, **(kwargs or {}))

    for limit in (blocks, 0):
        monkeypatch.setattr(dot_blocks, "KEPT_BLOCKS", limit)
        products.append(0)
        with Watch():
            bound = bound_of(separable_info_nce, "dot", labels=labels, symmetric=True)
            results.append(value_and_grads(bound, inputs))
    assert products == [blocks, 2 * blocks]
    assert all(torch.equal(kept, again) for kept, again in zip(*results, strict=True))


def test_strided_inputs():
    inputs = operands("bilinear", 9, 9)
    strided = [tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for tensor in inputs]
    for implementation in ["torch"] + ["triton"] * (not torch.cuda.is_available()):
        bound = bound_of(separable_info_nce, "bilinear", implementation=implementation)
        leaves = [tensor.detach().requires_grad_() for tensor in strided]
        value = bound(*leaves)
        assert_same([value.detach(), *torch.autograd.grad(value, leaves)], value_and_grads(bound, inputs))


def test_a_second_derivative_is_refused():
    inputs = [tensor.requires_grad_() for tensor in operands("dot", 5, 5)]
    (grad,) = torch.autograd.grad(separable_info_nce(*inputs[:2]), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative was asked for"):
        torch.autograd.grad(grad.sum(), inputs[0])


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_compiles_without_a_graph_break(implementation):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    inputs = [tensor.float() for tensor in operands("cosine", 9, 9)]
    labels = torch.arange(9, device=DEVICE) // 2
    bound = bound_of(separable_info_nce, "cosine", implementation=implementation, symmetric=True, labels=labels)
    compiled = torch.compile(bound, backend=backend, fullgraph=True)
    assert_same(value_and_grads(compiled, inputs), value_and_grads(bound, inputs), tolerance=1e-6)
    held = any("infobert_fast.separable" in str(node.target) for node in graphs[0].graph.nodes)
    assert held == (implementation == "triton")


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.integers(1, 12),
    symmetric=st.booleans(),
    critic=st.sampled_from(CRITICS),
    classes=st.none() | st.integers(1, 5),
    seed=st.integers(0, 10**6),
)
def test_equals_the_oracle_for_any_shape(pairs, symmetric, critic, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = None if classes is None else torch.randint(classes, (pairs,), generator=generator).to(DEVICE)
    local_index, pair_index = device_indices(pairs, 5, 4, seed)
    options = {"symmetric": symmetric, "labels": labels, "local_index": local_index, "pair_index": pair_index}
    inputs = operands(critic, 5, 4, seed)
    got = value_and_grads(bound_of(separable_info_nce, critic, **options), inputs)
    expected = value_and_grads(bound_of(reference.separable_info_nce, critic, **options), inputs)
    for g, e in zip(got, expected, strict=True):
        assert (g - e).abs().max() < 1e-10


X = torch.zeros(4, 7)


@pytest.mark.parametrize(
    ("local", "global_", "options", "error", "message"),
    [
        (X, X, {"critic": "mlp"}, ValueError, r"`critic` was 'mlp'; it must be one of 'dot', 'cosine', 'bilinear'"),
        (X, X[:, :5], {}, ValueError, r"`global_` is 5 wide and `local` 7; the dot critic needs equal widths"),
        (X, X[:, :5], {"critic": "cosine"}, ValueError, r"the cosine critic needs equal widths"),
        (X, X, {"critic": "bilinear"}, ValueError, r"`weight` was None; the bilinear critic needs \[7, 7\]"),
        (X, X[:, :5], {"critic": "bilinear", "weight": X}, ValueError, r"`weight` was of shape \[4, 7\].*\[7, 5\]"),
        (X, X, {"weight": X}, ValueError, r"`weight` was given; the dot critic has none"),
        (X, X, {"scale": math.nan}, ValueError, r"`scale` was nan; it must be a finite number >= 0"),
        (X, X, {"scale": -1.0}, ValueError, r"`scale` was -1.0"),
        (X, X, {"scale": torch.ones(2)}, ValueError, r"`scale` was torch.float32 of shape \[2\]"),
        (X, X[:3], {}, ValueError, r"`local` gives 4 pairs and `global_` 3.*`pair_index`"),
        (X[:0], X[:0], {}, ValueError, r"`local` holds zero rows"),
        (X, X.double(), {}, TypeError, r"`global_` has dtype torch.float64 and `local` torch.float32"),
        (X, X.to("meta"), {}, ValueError, r"`global_` is on meta and `local` on cpu"),
        (X, X, {"pair_index": torch.tensor([0, 1, 2, 4])}, IndexError, r"`pair_index` holds values from 0 to 4"),
        (X, X, {"labels": torch.zeros(4)}, ValueError, r"`labels` was torch.float32 of shape \[4\]; it must be torch"),
        (X, X, {"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"`labels` was .*\[3\].* shape \[4\]"),
        (X, X, {"implementation": "cuda"}, ValueError, r"`implementation` was 'cuda'"),
    ],
)  # fmt: skip
def test_refuses(local, global_, options, error, message):
    with pytest.raises(error, match=message):
        separable_info_nce(local, global_, **options)


def test_reference_is_the_specification():
    inputs = operands("dot", 6, 6)
    call = functools.partial(separable_info_nce, *inputs[:2], scale=inputs[2])
    assert torch.equal(call(implementation="reference"), reference.separable_info_nce(*inputs[:2], scale=inputs[2]))
