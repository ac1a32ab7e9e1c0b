"""The gradient of gathered rows: one pass where they are distinct, a sum in order where they repeat."""

import pytest
import torch

from infobert_fast.kernels.rows import scatter_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "pairs", "width"), [(1, 1, 1), (33, 7, 300), (40, 40, 31)])
def test_distinct_rows(rows, pairs, width, dtype, device):
    index = torch.randperm(rows, device=device)[:pairs]
    grad = torch.randn(pairs, width, device=device).to(dtype)
    like = torch.zeros(rows, width, dtype=dtype, device=device)
    expected = like.clone()
    expected[index] = grad
    assert torch.equal(scatter_rows(grad, index, like, True), expected)
    strided = torch.zeros(width, 2 * pairs, dtype=dtype, device=device)[:, ::2].t().copy_(grad)
    assert torch.equal(scatter_rows(strided, index.repeat_interleave(2)[::2], like, True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeated_rows_are_added_in_float32(dtype, device):
    index = torch.randint(5, (200,), device=device)
    grad = torch.rand(200, 9, device=device).to(dtype)
    like = torch.zeros(7, 9, dtype=dtype, device=device)
    expected = torch.zeros(7, 9, device=device, dtype=torch.float64).index_add(0, index, grad.double())
    got = scatter_rows(grad, index, like, False)
    torch.testing.assert_close(got, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert torch.equal(got, scatter_rows(grad, index, like, False))
    assert not got[5:].any()
