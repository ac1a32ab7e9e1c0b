"""The checks themselves: what passes, what is refused and in which words, and when values are left unread."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from infobert_fast import checks

CPU = torch.device("cpu")


def refused(function, *args, error=ValueError, match, **options):
    with pytest.raises(error, match=match):
        function(*args, **options)


def test_values_are_read_on_a_cpu_unless_told_otherwise():
    tensor = torch.ones(2)
    assert checks.values_readable(tensor, None)
    assert checks.values_readable(tensor, True)
    assert not checks.values_readable(tensor, False)


@pytest.mark.parametrize("validate", [None, True, False])
def test_values_are_never_read_where_there_are_none_or_a_graph_is_recorded(validate):
    assert not checks.values_readable(torch.ones(2, device="meta"), validate)
    with FakeTensorMode():
        assert not checks.values_readable(torch.ones(2), validate)
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(tensor):
        return tensor + (1 if checks.values_readable(tensor, validate) else 0)

    assert torch.equal(compiled(torch.ones(2)), torch.ones(2))


class OnADevice:
    """What ``values_readable`` may ask of a tensor on a GPU; any other attribute would be an error."""

    is_meta, is_cuda, device = False, True, torch.device("cuda")


def test_on_a_gpu_values_are_read_only_when_asked_for_and_not_under_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert [checks.values_readable(OnADevice(), validate) for validate in (None, False, True)] == [False, False, True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not checks.values_readable(OnADevice(), True)


def test_choice():
    checks.choice("side", "left", ("left", "right"))
    refused(checks.choice, "side", "up", ("left", "right"), match=r"`side` was 'up'; it must be one of 'left', 'right'")
    refused(checks.choice, "side", None, ("left", "right"), match=r"`side` was None")


@pytest.mark.parametrize("value", [0, 0.0, 1, 0.5, 1.0])
def test_number_accepts(value):
    checks.number("fraction", value, low=0.0, high=1.0)


@pytest.mark.parametrize("value", [-1e-9, 1.0001, math.nan, math.inf, -math.inf, True, "0.5", None, torch.tensor(0.5)])
def test_number_refuses(value):
    refused(
        checks.number, "fraction", value, low=0.0, high=1.0, advice="halve it", match=r"`fraction` was .*; halve it$"
    )


def test_number_names_the_open_interval():
    refused(checks.number, "lr", -1, low=0.0, match=r"`lr` was -1; it must be a finite number >= 0.0$")


def test_positive_integer():
    checks.positive_integer("n", 1)
    checks.positive_integer("n", None, optional=True)
    for value in (0, -1, 1.0, 1.5, True, "2", None):
        refused(checks.positive_integer, "n", value, match=rf"`n` was {value!r}; it must be an integer of at least 1")
    for value in (0, True):
        refused(checks.positive_integer, "n", value, optional=True, match="must be None or an integer of at least 1")


def test_anchor_window():
    for cl, ch in ((0, 1), (0.5, 0.9), (0.3, 0.3), (0, 0), (1, 1)):
        checks.anchor_window(cl, ch)
    refused(checks.anchor_window, 0.9, 0.5, match=r"`cl` was 0.9 and `ch` 0.5; `cl` must not exceed `ch`: swap them")
    refused(checks.anchor_window, -0.1, 0.5, match=r"`cl` was -0.1.*least useful")
    refused(checks.anchor_window, 0.1, 1.5, match=r"`ch` was 1.5.*non-robust")
    refused(checks.anchor_window, math.nan, 0.5, match=r"`cl` was nan")


def test_matrix():
    rows = torch.zeros(3, 4)
    checks.matrix("x", rows, width=4, like=("y", torch.zeros(1, 1)))
    checks.matrix("x", rows.bfloat16())
    refused(checks.matrix, "x", [[1.0]], error=TypeError, match=r"`x` was a list; it must be a torch.Tensor")
    refused(checks.matrix, "x", rows.int(), error=TypeError, match=r"`x` has dtype torch.int32.*call `.float\(\)`")
    refused(
        checks.matrix, "x", rows[0], match=r"`x` has shape \[4\]; it must be a matrix \[rows, width\]: call `.unsqu"
    )
    refused(checks.matrix, "x", rows[None], match=r"`x` has shape \[1, 3, 4\]; .* \[rows, width\]: flatten it first")
    refused(checks.matrix, "x", rows.numpy(), error=TypeError, match=r"`x` was a ndarray; .*: call `torch.from_numpy`")
    refused(checks.matrix, "x", rows, width=5, match=r"`x` is 4 wide; it must be 5 wide")
    refused(checks.matrix, "x", rows[:0], match=r"`x` holds zero rows.*skip the call")


def test_agreement_of_device_and_dtype():
    x, y = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    checks.agree("x", x, "y", x)
    checks.agree("x", x, "y", y, dtype=False)
    refused(
        checks.agree, "x", x, "y", y, error=TypeError, match=r"`x` has dtype torch.float32 and `y` torch.float64.*cast"
    )
    refused(checks.agree, "x", x, "y", x.to("meta"), match=r"`x` is on cpu and `y` on meta; they must share a device")
    like = ("y", y)
    refused(checks.matrix, "x", x[None], like=like, error=TypeError, match=r"they must agree")
    refused(checks.vector, "x", x, 2, like=like, error=TypeError, match=r"they must agree")


def test_vector():
    like = ("y", torch.zeros(1))
    checks.vector("w", torch.zeros(3), 3, like=like)
    for shape in ((2,), (3, 1), ()):
        refused(checks.vector, "w", torch.zeros(shape), 3, like=like, match=r"`w` has shape .*\[3\]")


def test_index():
    checks.index("i", torch.tensor([0, 2, 2]), 3, "x", CPU)
    checks.index("i", torch.tensor([9]), 3, "x", CPU, validate=False)
    refused(
        checks.index, "i", torch.tensor([0, 3]), 3, "x", CPU, error=IndexError, match=r"from 0 to 3; `x` has 3 rows"
    )
    refused(checks.index, "i", torch.tensor([-1]), 3, "x", CPU, error=IndexError, match=r"from -1 to -1.*\[0, 3\)")
    refused(checks.index, "i", torch.zeros(0, dtype=torch.int64), 3, "x", CPU, match=r"`i` is empty")
    refused(
        checks.index, "i", torch.zeros(2), 3, "x", CPU, error=TypeError, match=r"`i` was torch.float32 of shape \[2\]"
    )
    refused(checks.index, "i", torch.zeros(2, 2).long(), 3, "x", CPU, error=TypeError, match=r"of shape \[2, 2\]")
    refused(checks.index, "i", (0, 1), 3, "x", CPU, error=TypeError, match=r"`i` was tuple")
    meta = torch.zeros(2, dtype=torch.int64, device="meta")
    refused(checks.index, "i", meta, 3, "x", CPU, match=r"`i` is on meta and `x` on cpu")
    checks.index("i", meta, 3, "x", torch.device("meta"), validate=True)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_attention_mask(dtype):
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]]).to(dtype)
    checks.attention_mask(mask, (2, 3), device=CPU)
    mask[1, 2] = 0
    refused(
        checks.attention_mask, mask, match=r"`attention_mask` is all zero for sentence 1; every sentence needs a token"
    )
    checks.attention_mask(mask, validate=False)
    if dtype != torch.bool:
        mask[0, 0] = 2
        refused(checks.attention_mask, mask, match=r"`attention_mask` holds values other than 0 and 1")


def test_attention_mask_of_a_wrong_form():
    mask = torch.ones(2, 3)
    refused(checks.attention_mask, mask[0], match=r"`attention_mask` was shape \[3\]; it must be a \[batch, length\]")
    refused(checks.attention_mask, [[1, 1]], match=r"`attention_mask` was list")
    refused(
        checks.attention_mask, mask, (2, 4), match=r"`attention_mask` has shape \[2, 3\]; the hidden states make it"
    )
    meta = torch.device("meta")
    refused(checks.attention_mask, mask, (2, 3), device=meta, match=r"on cpu and the hidden states on meta")
    for value in (-1.0, 0.5, math.nan, -10000.0):
        mask[1, 1] = value
        refused(checks.attention_mask, mask, match=r"`attention_mask` holds values other than 0 and 1")


def test_zeros_and_ones():
    checks.zeros_and_ones("mask", torch.tensor([0, 1, 1]))
    checks.zeros_and_ones("mask", torch.tensor([True]))
    refused(
        checks.zeros_and_ones, "mask", torch.tensor([0, 3]), match=r"`mask` holds values other than 0 and 1; give 1 for"
    )
