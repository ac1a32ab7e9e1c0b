"""The dot-product kernels by themselves: sizes around a tile, edges of the merge, and the registered operators."""

import pytest
import torch

from infobert_fast.kernels import separable
from infobert_fast.kernels.pairs import Terms


def rows(n, width, seed, device, dtype=torch.float32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def case(I, J, device, dtype=torch.float32, width=9):  # noqa: E741
    return rows(J, width, 0, device, dtype), rows(I, width, 1, device, dtype), torch.tensor(0.7, device=device)


@pytest.mark.parametrize(("I", "J"), [(1, 1), (63, 127), (64, 128), (65, 129), (3, 300), (200, 2)])
@pytest.mark.parametrize("block", [2**26, 64 * 100])
def test_both_log_sums(I, J, block, device, monkeypatch):  # noqa: E741
    monkeypatch.setattr(separable, "BLOCK_SCORES", block)
    x, y, scale = case(I, J, device)
    lse_i, lse_j = separable.separable_forward(x, y, scale, symmetric=True)
    scores = 0.7 * y.double() @ x.double().t()
    torch.testing.assert_close(lse_i.double(), scores.logsumexp(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse_j.double(), scores.logsumexp(0), rtol=1e-6, atol=1e-6)
    alone, empty = separable.separable_forward(x, y, scale)
    assert torch.equal(alone, lse_i)
    assert empty.shape == (0,)


def test_millions_of_rows_against_a_few_fit_a_grid():
    parts = list(separable.blocks(10_000_000, 4))
    assert all(i.stop - i.start <= 65_535 * separable.ROWS for i, _ in parts)
    assert sum((i.stop - i.start) * (j.stop - j.start) for i, j in parts) == 40_000_000


def test_a_tile_that_labels_leave_out_whole(device, monkeypatch):
    """The first row's own tile holds it alone; every other tile of it holds nothing."""
    monkeypatch.setattr(separable, "COLUMNS", 16)
    x, y, scale = case(70, 70, device)
    labels = torch.zeros(70, dtype=torch.int64, device=device)
    lse_i, lse_j = separable.separable_forward(x, y, scale, Terms(labels, labels, True), symmetric=True)
    torch.testing.assert_close(lse_i, 0.7 * (x * y).sum(1))
    torch.testing.assert_close(lse_j, 0.7 * (x * y).sum(1))


def test_opcheck(device):
    x, y, scale = (t.requires_grad_() for t in case(9, 9, device))
    labels = torch.arange(9, device=device) // 2
    for terms, symmetric, dtype in (
        (Terms(labels, labels, True, 0.5), True, torch.bfloat16),
        (Terms(), False, torch.float32),
    ):
        torch.library.opcheck(torch.ops.infobert_fast.separable.default, (x, y, scale, *terms, symmetric, dtype))


def test_one_graph_for_any_number_of_pairs(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def total(x, y, scale):
        lse_i, lse_j = separable.logsumexp(x, y, scale, Terms(), True, torch.float32)
        return lse_i.sum() + lse_j.sum()

    for n in (5, 9, 17):
        leaves = [t.requires_grad_() for t in case(n, n, device)]
        got = torch.autograd.grad(total(*leaves), leaves)
        scores = leaves[2] * leaves[1] @ leaves[0].t()
        expected = torch.autograd.grad(scores.logsumexp(1).sum() + scores.logsumexp(0).sum(), leaves)
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
