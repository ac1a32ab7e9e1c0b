"""The masked sums beyond 2^31 elements, in a file that is mapped but never filled."""

import math

import pytest
import torch

from infobert_fast.kernels import fast_sums, mask_sums

ROW = 2**27  # sixteen rows are 2^31 elements


@pytest.fixture
def mapped(tmp_path):
    """Zeros in a file that takes room where they are touched alone."""

    def make(shape, dtype=torch.float32):
        name = str(tmp_path / str(dtype))
        return torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)

    return make


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device has no memory that is not there")
def test_sums_of_rows_beyond_32_bits(mapped):
    """Row 20 of sums that are 2^27 wide, whose offset is beyond 2^31: sum_k g_k 1[x > -y_k] at two units."""
    x, y, g, out = torch.zeros(32, 64), torch.zeros(4, 64), torch.zeros(4, 32), mapped((32, ROW))
    x[20, :2], y[:, :2] = torch.tensor([0.5, -0.5]), torch.tensor([[1.0, 1], [-1, -1], [0, 1], [-1, 0]])
    g[:, 20] = torch.tensor([1.0, 10, 100, 1000])
    mask_sums.mask_sum_kernel[(2, 1, 1)](
        x, y, g, out, 64, 1, 64, 1, ROW, 32, 4, 32, 4, 0, 0, 0, 32, 4, 4, BR=16, BH=64, ACCUMULATE=False
    )
    assert out[20, :3].tolist() == [101, 101, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device has no memory that is not there")
def test_fast_sums_of_rows_beyond_32_bits(mapped):
    """The same, of operands whose rows are 2^27 apart too."""
    half = torch.float16
    x, g = mapped((32, ROW), half), torch.zeros(2, 32, 32, dtype=half)
    minus_y, out, scale = torch.zeros(64, 32, dtype=half), mapped((32, ROW)), torch.tensor([0.5])
    x[20, :2], minus_y[:2, :4] = torch.tensor([0.5, -0.5]), -torch.tensor([[1.0, -1, 0, -1], [1, -1, 1, 0]])
    g[0, 20, :4] = torch.tensor([2.0, 20, 200, 2000])
    fast_sums.fast_mask_sum_kernel[(2, 1, 1)](
        x, minus_y, g, scale, out, ROW, 32, ROW, 32, 4, 32, 4, 0, 0, 0, 32, 32, 32, 32, 1024, 32,
        BR=16, BH=64, BK=32, ACCUMULATE=False, PACKED=False, STAGES=1,
    )  # fmt: skip
    assert out[20, :3].tolist() == [101, 101, 0]
