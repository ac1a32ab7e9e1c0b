"""NaN, infinity and arguments that do not fit: no wrong finite number, and errors that name the argument."""

from __future__ import annotations

import math

import pytest
import torch
from contrastive_cases import F64, NAMES, critic_inputs, primitive_inputs, value_and_grads

from infobert_fast.functional import IMPLEMENTATIONS, info_nce, pairwise_mlp_logsumexp


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("position", range(6), ids=NAMES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_info_nce_of_nan_is_nan_and_of_infinity_not_finite(poison, position, chunk_size):
    inputs = [tensor.clone() for tensor in critic_inputs(9, 9)]
    inputs[position].view(-1)[-1] = poison
    value = info_nce(*inputs, chunk_size=chunk_size)
    if NAMES[position] == "b2" and poison == -math.inf:
        assert value == 0  # the limit: a critic that is 0 everywhere
    else:
        assert value.isnan() if math.isnan(poison) else not value.isfinite()


@pytest.mark.parametrize("position", range(4), ids=["a", "b", "w2", "b2"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_primitive_of_nan_is_nan_and_of_infinity_not_finite(poison, position):
    inputs = list(primitive_inputs(5, 6))
    inputs[position].view(-1)[-1] = poison
    value = pairwise_mlp_logsumexp(*inputs)
    assert value.isnan().any() if math.isnan(poison) else not value.isfinite().all()


@pytest.mark.parametrize("position", range(6), ids=NAMES)
def test_nan_reaches_the_gradients(position):
    inputs = [tensor.clone() for tensor in critic_inputs(9, 9)]
    inputs[position].view(-1)[0] = math.nan
    assert all(grad.isnan().any() for grad in value_and_grads(info_nce, inputs)[1:])


def call(*, local=(4, 7), global_=(4, 5), w1=(8, 12), b1=(8,), w2=(1, 8), b2=(1,), dtype=torch.float32, **options):
    """info_nce of zeros of these shapes (or of the tensors given)."""
    given = {"local": local, "global_": global_, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    tensors = {n: v if isinstance(v, torch.Tensor) else torch.zeros(v, dtype=dtype) for n, v in given.items()}
    return info_nce(**tensors, **options)


def test_the_plain_call_is_accepted():
    assert call() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"global_": (3, 5)}, ValueError, r"`local` gives 4 pairs and `global_` 3; .*counts must agree.*`pair_index`"),
        ({"pair_index": torch.zeros(3, dtype=torch.int64)}, ValueError, r"`local` gives 4 pairs and `pair_index` 3"),
        ({"local_index": torch.zeros(5, dtype=torch.int64)}, ValueError, r"`local_index` gives 5 pairs and `global_`"),
        ({"local": (4, 8)}, ValueError, r"`w1` is 12 wide; it must be 13 wide"),
        ({"local": (4,)}, ValueError, r"`local` has shape \[4\]; it must be a matrix"),
        ({"global_": (4, 1, 5)}, ValueError, r"`global_` has shape \[4, 1, 5\]; it must be a matrix"),
        ({"b1": (7,)}, ValueError, r"`b1` has shape \[7\].*\[8\]"),
        ({"w2": (1, 9)}, ValueError, r"`w2` has shape \[9\].*\[8\]"),
        ({"b2": (4,)}, ValueError, r"`b2` has shape \[4\].*\[1\]"),
        ({"global_": torch.zeros(4, 5, device="meta")}, ValueError, r"`global_` is on meta and `local` on cpu.*`.to"),
        ({"w1": torch.zeros(8, 12, device="meta")}, ValueError, r"`w1` is on meta and `local` on cpu"),
        ({"b2": torch.zeros(1, device="meta")}, ValueError, r"`b2` is on meta and `local` on cpu"),
        ({"global_": torch.zeros(4, 5, dtype=F64)}, TypeError, r"`global_` has dtype torch.float64 and `local`"),
        ({"w2": torch.zeros(1, 8, dtype=F64)}, TypeError, r"`w2` has dtype torch.float64 and `local` torch.float32"),
        ({"dtype": torch.int64}, TypeError, r"`local` has dtype torch.int64; it must be a floating dtype"),
        ({"local": (0, 7), "global_": (0, 5)}, ValueError, r"`local` holds zero rows.*at least one pair"),
        ({"global_": (0, 5)}, ValueError, r"`global_` holds zero rows.*at least one pair"),
        ({"pair_index": torch.tensor([0, 1, 2, 4])}, IndexError, r"`pair_index` holds values from 0 to 4.*\[0, 4\)"),
        ({"pair_index": torch.tensor([0, -1, 2, 3])}, IndexError, r"`pair_index` holds values from -1 to 3"),
        ({"local_index": torch.tensor([0, 1, 2, 9])}, IndexError, r"`local_index` holds values from 0 to 9.*has 4"),
        ({"pair_index": torch.zeros(4, dtype=torch.int32)}, TypeError, r"`pair_index` was torch.int32.*torch.int64"),
        ({"pair_index": torch.zeros(4)}, TypeError, r"`pair_index` was torch.float32"),
        ({"pair_index": torch.ones(4, dtype=torch.bool)}, TypeError, r"`pair_index` was torch.bool"),
        ({"pair_index": [0, 1, 2, 3]}, TypeError, r"`pair_index` was list"),
        ({"pair_index": torch.zeros(4, 1, dtype=torch.int64)}, TypeError, r"`pair_index` was .* of shape \[4, 1\]"),
        ({"pair_index": torch.zeros(0, dtype=torch.int64)}, ValueError, r"`pair_index` is empty.*at least one pair"),
        ({"local_index": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, r"`local_index` is on meta"),
        ({"chunk_size": 0}, ValueError, r"`chunk_size` was 0; it must be None or an integer of at least 1"),
        ({"chunk_size": -1}, ValueError, r"`chunk_size` was -1"),
        ({"chunk_size": 1.5}, ValueError, r"`chunk_size` was 1.5"),
        ({"chunk_size": True}, ValueError, r"`chunk_size` was True"),
        ({"implementation": "cuda"}, ValueError, r"`implementation` was 'cuda'; it must be one of 'auto'"),
        ({"precision": "half"}, ValueError, r"`precision` was 'half'; it must be one of 'exact', 'fast'"),
        ({"precision": "half", "implementation": "reference"}, ValueError, r"`precision` was 'half'"),
    ],
)  # fmt: skip
def test_info_nce_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4, 8), (4, 7), (8,), (1,)), {}, r"`b` is 7 wide; it must be 8 wide"),
        (((4, 8), (4, 8), (7,), (1,)), {}, r"`w2` has shape \[7\]"),
        (((4, 8), (4, 8), (8,), (4,)), {}, r"`b2` has shape \[4\]"),
        (
            ((4, 8), (3, 8), (8,), (1,)),
            {"chunk_size": 2},
            r"`a` gives 4 pairs and `b` 3; the counts must agree",
        ),
        (((0, 8), (3, 8), (8,), (1,)), {}, r"`a` holds zero rows"),
        (((4, 8), (4, 8), (8,), (1,)), {"chunk_size": 0}, r"`chunk_size` was 0"),
        (((4, 8), (4, 8), (8,), (1,)), {"precision": "half"}, r"`precision` was 'half'"),
        (((4, 8), (4, 8), (8,), (1,)), {"implementation": "cuda"}, r"`implementation` was 'cuda'"),
    ],
)
def test_primitive_refuses(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        pairwise_mlp_logsumexp(*(torch.zeros(shape) for shape in shapes), **options)


def test_triton_on_cpu_tensors_says_why_not(monkeypatch):
    """The reason is the missing kernel, the missing package or the tensors' device; the way out is named."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    why = r"`implementation` was 'triton', but .*(no Triton kernel|not installed|on cpu).*; use 'torch'"
    with pytest.raises(ValueError, match=why):
        call(implementation="triton")
    with pytest.raises(ValueError, match=why):
        pairwise_mlp_logsumexp(*primitive_inputs(3, 3), implementation="triton")


@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_precision_fast_is_accepted_where_no_kernel_has_it(implementation):
    assert implementation in IMPLEMENTATIONS
    inputs = critic_inputs(6, 6)
    assert torch.equal(info_nce(*inputs, implementation=implementation, precision="fast"), info_nce(*inputs))


def test_validate_false_reads_no_index_values():
    wrong = torch.tensor([0, 1, 2, 4])
    with pytest.raises(IndexError, match="out of range"):  # PyTorch's own words: ours were skipped
        call(pair_index=wrong, validate=False)
