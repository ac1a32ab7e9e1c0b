"""Rows through an index: values, gradients, refusals."""

import pytest
import torch

from infobert_fast.functional import take_rows

ROWS = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize("implementation", ["auto", "triton", "torch", "reference"])
@pytest.mark.parametrize("distinct", [False, True])
def test_every_implementation_gathers_and_scatters(implementation, distinct):
    index = torch.tensor([2, 0, 3] if distinct else [2, 0, 2, 2])
    rows = ROWS.clone().requires_grad_()
    gathered = take_rows(rows, index, distinct=distinct, implementation=implementation)
    assert torch.equal(gathered, ROWS[index])
    weights = torch.arange(1.0, 1 + gathered.numel()).reshape(gathered.shape)
    (gathered * weights).sum().backward()
    assert torch.equal(rows.grad, torch.zeros(4, 3).index_add(0, index, weights))


@pytest.mark.parametrize(
    ("index", "distinct", "error", "message"),
    [
        (torch.tensor([1, 4]), False, IndexError, r"`index` holds values from 1 to 4; `rows` has 4 rows"),
        (torch.tensor([1, 1]), True, ValueError, "`index` repeats a row although `distinct` was True"),
        (torch.tensor([1.0]), False, TypeError, "`index` was torch.float32"),
        (torch.tensor([], dtype=torch.int64), False, ValueError, "`index` is empty"),
    ],
    ids=str,
)
def test_take_rows_refuses(index, distinct, error, message):
    with pytest.raises(error, match=message):
        take_rows(ROWS, index, distinct=distinct)
