"""One declaration, two ways: the same bits in eager code and in a graph, and only the gradients that are needed."""

import pytest
import torch
from torch import Tensor

from infobert_fast.kernels.declaration import operator

SEEN = []


def _fake(x, y, power, weights):
    return x.new_empty(()), x.new_empty(x.shape), x.new_empty(x.shape)


def _backward(grads, inputs, results, need):
    SEEN.append(list(need))
    (grad, grad_rows), (_, y, power, weights), (_, rows, kept) = grads, inputs, results
    scale = grad + grad_rows
    dx = scale * power * kept * y * weights[0] if need[0] else None
    return dx, scale * rows / y * weights[0] if need[1] else None


@operator("declared_for_a_test", _fake, _backward, outputs=2, gradients=2)
def product(x: Tensor, y: Tensor, power: int, weights: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and entries of ``x^power y``, and ``x^(power - 1)`` for the backward."""
    kept = x ** (power - 1)
    rows = kept * x * y
    return rows.sum() * weights[0], rows, kept


def run(function, x, y):
    total, rows = function(x, y, 3, [1.0])
    (total + rows.sum()).backward()
    return total.detach(), rows.detach(), *(leaf.grad for leaf in (x, y) if leaf.grad is not None)


@pytest.mark.parametrize("needed", [(True, True), (False, True), (True, False)])
def test_both_ways_give_the_same_bits(needed):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: product(*a), fullgraph=True, backend="aot_eager")
    results = []
    for function in (product, compiled):
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.rand(4, generator=generator, dtype=torch.float64).requires_grad_(n) for n in needed)
        SEEN.clear()
        results.append(run(function, x, y))
        assert [list(needed)] == SEEN
    assert len(results[0]) == 2 + sum(needed)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    expected = 2 * 3 * x.detach() ** 2 * y.detach() if needed[0] else 2 * x.detach() ** 3
    torch.testing.assert_close(results[0][2], expected)


def test_opcheck_and_gradcheck():
    x, y = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.infobert_fast.declared_for_a_test.default, (x, y, 3, [2.0]))
    assert torch.autograd.gradcheck(lambda x, y: torch.stack([*product(x, y, 3, [1.0])[:1]]), (x, y))


def test_a_second_derivative_is_refused():
    x, y = (torch.rand(3, requires_grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(product(x, y, 2, [1.0])[0], x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


def test_a_launcher_without_a_gradient():
    @operator("declared_without_gradient", lambda x, n: x.new_empty((n,)))
    def first(x: Tensor, n: int) -> Tensor:
        return x[:n].clone()

    x = torch.arange(5.0)
    compiled = torch.compile(lambda x: first(x, 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(first(x, 2), compiled(x))
