"""FreeLB's start and ascent: against the specification, norms, padding, NaN."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast import reference
from infobert_fast.functional import freelb_init, freelb_step
from infobert_fast.functional.freelb import _root_of_entries

MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0], [1, 0, 1, 0, 1]])  # right, left, much, holes


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norms(delta: torch.Tensor, norm_type: str) -> torch.Tensor:
    flat = delta.flatten(1).double()
    return flat.norm(dim=1) if norm_type == "l2" else flat.abs().amax(1)


# --- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_init_is_uniform_within_its_magnitude(norm_type):
    """Mean 0, mean square a third of the squared magnitude, per sentence of 64, 16 and 4 tokens."""
    mask = torch.zeros(3, 64)
    for i, length in enumerate((64, 16, 4)):
        mask[i, :length] = 1
    delta = freelb_init(torch.zeros(3, 64, 500), mask, 0.08, norm_type, generator=torch.Generator().manual_seed(0))
    assert (delta[mask == 0] == 0).all()
    for i, length in enumerate((64, 16, 4)):
        magnitude = 0.08 / math.sqrt(length * 500) if norm_type == "l2" else 0.08
        entries = delta[i, :length].flatten() / magnitude
        n = entries.numel()
        assert entries.abs().max() <= 1 + 1e-6
        assert entries.abs().max() > 0.99
        assert abs(entries.mean()) < 4 / math.sqrt(3 * n)
        assert abs(entries.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_init_equals_the_specification_up_to_the_draw(norm_type):
    """One generator state, two ways to stretch its uniform numbers over (-1, 1)."""
    embeddings = torch.zeros(4, 5, 6, dtype=torch.float64)
    got, expected = (
        function(embeddings, MASK, 0.3, norm_type, generator=torch.Generator().manual_seed(1))
        for function in (freelb_init, reference.freelb_init)
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_init_draws_from_the_generator_it_is_given():
    embeddings = torch.zeros(4, 5, 6)
    same, again, other = (
        freelb_init(embeddings, MASK, 0.1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_init_of_magnitude_zero_is_zero_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert (freelb_init(torch.zeros(4, 5, 6), MASK, 0.0, generator=generator) == 0).all()
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_init_is_float32_at_least(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    embeddings = torch.zeros(4, 5, 6, dtype=dtype, requires_grad=True)
    for magnitude in (0.0, 0.1):
        delta = freelb_init(embeddings, MASK, magnitude)
        assert delta.dtype == expected
        assert not delta.requires_grad


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_a_seeded_start_is_the_specifications(norm_type):
    ids = torch.tensor([3, 2**40, -9, 0])
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 2e-7)):
        embeddings = torch.zeros(4, 5, 6, dtype=dtype)
        got = freelb_init(embeddings, MASK, 0.3, norm_type, seed=2**63 + 5, sentence_ids=ids)
        exact = reference.freelb_init(embeddings.double(), MASK, 0.3, norm_type, seed=2**63 + 5, sentence_ids=ids)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 3, 64, 300, 768])
def test_the_root_of_every_length_is_correctly_rounded(width, dtype):
    """NumPy's root is the processor's; torch's own is an ulp off for many of these, which is why it is not taken."""
    lengths = torch.arange(1, 1025)
    keep = torch.arange(1024) < lengths.unsqueeze(1)
    roots = torch.cat([_root_of_entries(part, width).flatten() for part in keep.split(128)]).to(dtype)
    exact = numpy.sqrt((lengths * width).to(dtype).numpy())
    assert numpy.array_equal(roots.numpy(), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("norm_type", ["l2", "linf"])
@pytest.mark.parametrize("width", [1, 7])
def test_a_seeded_start_has_the_specifications_bits(width, norm_type, dtype):
    embeddings = torch.zeros(40, 40, width, dtype=dtype)
    mask = torch.arange(40) < torch.arange(1, 41).unsqueeze(1)
    starts = [function(embeddings, mask, 0.08, norm_type, seed=5) for function in (freelb_init, reference.freelb_init)]
    assert torch.equal(*starts)


def test_a_sentences_start_does_not_depend_on_its_batch():
    """Nor on the padding, on whichever side; another id, seed or token gives other numbers."""
    together = freelb_init(torch.zeros(4, 5, 6), MASK, 0.1, seed=1, sentence_ids=torch.tensor([4, 7, 5, 6]))
    alone = freelb_init(torch.zeros(1, 9, 6), torch.tensor([[1, 1, 1] + [0] * 6]), 0.1, seed=1,
                        sentence_ids=torch.tensor([7]))  # fmt: skip
    assert torch.equal(alone[0, :3], together[1, 2:])
    draws = [together, *(freelb_init(torch.zeros(4, 5, 6), MASK, 0.1, seed=seed) for seed in (1, 2))]
    tokens = torch.cat([draw[MASK == 1].flatten() / 0.1 * 6**0.5 for draw in draws])
    assert tokens.unique().numel() == tokens.numel()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "`seed` and `generator` were both given"),
        ({"seed": 1.5}, TypeError, "`seed` was 1.5; it must be an integer"),
        ({"sentence_ids": torch.arange(2)}, ValueError, "`sentence_ids` was given without `seed`"),
        ({"seed": 1, "sentence_ids": torch.arange(3)}, ValueError, r"it must be int64 \[2\], one a sentence"),
        ({"seed": 1, "sentence_ids": torch.zeros(2)}, ValueError, r"`sentence_ids` was torch.float32"),
        ({"implementation": "triton"}, ValueError, "`implementation` was 'triton' and `seed` None"),
    ],
    ids=["both", "no integer", "no seed", "too many ids", "ids of floats", "no kernel"],
)
def test_seeded_start_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        freelb_init(torch.zeros(2, 4, 3), torch.ones(2, 4), 0.1, **arguments)


# --- the ascent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
@pytest.mark.parametrize("max_norm", [0.0, 0.15, 100.0])
@pytest.mark.parametrize("grad_scale", [1.0, 1e-9, 0.0])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32, torch.bfloat16])
def test_step_equals_the_specification(norm_type, max_norm, grad_scale, mask_dtype):
    """Gradients of 1e-9 meet the clamp of the norm at 1e-8; magnitude .15 projects some sentences and not others."""
    delta, grad = 0.02 * normal(4, 5, 6, seed=1) * MASK.unsqueeze(-1), grad_scale * normal(4, 5, 6, seed=2)
    args = (delta, grad, MASK.to(mask_dtype), 0.1, max_norm, norm_type)
    got, expected = freelb_step(*args), reference.freelb_step(*args)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
    assert (got[MASK == 0] == 0).all()
    assert got.dtype == delta.dtype
    if grad_scale == 0 and max_norm == 0:
        assert torch.equal(got, delta)


def test_some_sentences_are_projected_and_the_others_are_not():
    delta, grad = 0.02 * normal(4, 5, 6, seed=1) * MASK.unsqueeze(-1), normal(4, 5, 6, seed=2)
    free, projected = (freelb_step(delta, grad, MASK, 0.1, max_norm) for max_norm in (0.0, 0.15))
    assert 0 < (norms(free, "l2") > 0.15).sum() < 4
    expected = torch.where(norms(free, "l2") > 0.15, 0.15, norms(free, "l2"))
    torch.testing.assert_close(norms(projected, "l2"), expected)


def test_linf_divides_by_the_largest_entry_and_does_not_take_signs():
    grad = torch.tensor([[[4.0, -1.0], [2.0, 0.0]]])
    got = freelb_step(torch.zeros(1, 2, 2), grad, torch.ones(1, 2), 0.4, 0.0, "linf")
    torch.testing.assert_close(got, torch.tensor([[[0.4, -0.1], [0.2, 0.0]]]))
    clamped = freelb_step(torch.zeros(1, 2, 2), grad, torch.ones(1, 2), 0.4, 0.15, "linf")
    torch.testing.assert_close(clamped, torch.tensor([[[0.15, -0.1], [0.15, 0.0]]]))


def test_sentences_do_not_see_each_other():
    delta, grad = normal(4, 5, 6, seed=1), normal(4, 5, 6, seed=2)
    together = freelb_step(delta, grad, MASK, 0.1, 0.5)
    alone = torch.cat([freelb_step(delta[i : i + 1], grad[i : i + 1], MASK[i : i + 1], 0.1, 0.5) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_padding_counts_neither_in_the_norm_nor_in_the_result(norm_type):
    delta, grad = normal(4, 5, 6, seed=1), normal(4, 5, 6, seed=2)
    clean = freelb_step(delta, grad, MASK, 0.1, 0.5, norm_type)
    pad = (MASK == 0).unsqueeze(-1)
    for junk in (1e6, math.nan, math.inf):
        args = (delta.masked_fill(pad, junk), grad.masked_fill(pad, junk), MASK, 0.1, 0.5, norm_type)
        assert torch.equal(freelb_step(*args), clean)


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_in_a_sentence_makes_its_own_perturbation_not_finite(norm_type, max_norm, poison):
    for where in ("delta", "grad"):
        tensors = {"delta": normal(4, 5, 6, seed=1), "grad": normal(4, 5, 6, seed=2)}
        clean = freelb_step(**tensors, attention_mask=MASK, adv_lr=0.1, adv_max_norm=max_norm, norm_type=norm_type)
        tensors[where][1, 3, 2] = poison
        got = freelb_step(**tensors, attention_mask=MASK, adv_lr=0.1, adv_max_norm=max_norm, norm_type=norm_type)
        others = [0, 2, 3]
        assert torch.equal(got[others], clean[others])
        if math.isnan(poison):
            assert got[1, 3, 2].isnan()
        elif (where, norm_type, max_norm) != ("delta", "linf", 0.1):  # there the clamp brings infinity back
            assert not got[1].isfinite().all()


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_half_precision_gradients_move_a_float32_perturbation(norm_type):
    delta, grad = 0.1 * normal(4, 5, 6, seed=1).float(), normal(4, 5, 6, seed=2).bfloat16()
    got = freelb_step(delta, grad, MASK, 0.1, 0.3, norm_type)
    assert got.dtype == torch.float32
    exact = reference.freelb_step(delta.double(), grad.double(), MASK, 0.1, 0.3, norm_type)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-7)


def test_step_is_without_graph_and_leaves_its_inputs():
    delta, grad = normal(4, 5, 6, seed=1).requires_grad_(), normal(4, 5, 6, seed=2)
    copies = delta.detach().clone(), grad.clone()
    got = freelb_step(delta, grad, MASK, 0.1, 0.5)
    assert not got.requires_grad
    assert torch.equal(delta, copies[0])
    assert torch.equal(grad, copies[1])


def test_strided_inputs():
    delta, grad = (normal(6, 5, 4, seed=seed).transpose(0, 2) for seed in (1, 2))
    assert not delta.is_contiguous()
    got = freelb_step(delta, grad, MASK, 0.1, 0.5)
    torch.testing.assert_close(got, freelb_step(delta.contiguous(), grad.contiguous(), MASK, 0.1, 0.5))


# --- bad input and compilation --------------------------------------------------------------------------------------

ZEROS, ONES = torch.zeros(2, 4, 3), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adv_init_mag": -0.1}, r"`adv_init_mag` was -0.1; it must be a finite number >= 0.0"),
        ({"adv_init_mag": math.nan}, r"`adv_init_mag` was nan"),
        ({"adv_init_mag": math.inf}, r"`adv_init_mag` was inf"),
        ({"norm_type": "l1"}, r"`norm_type` was 'l1'; it must be one of 'l2', 'linf'"),
        ({"embeddings": ZEROS[0]}, r"the embeddings have shape \[4, 3\]; they must be \[batch, length, d\]"),
        ({"attention_mask": ONES[:, :3]}, r"`attention_mask` has shape \[2, 3\].*\[2, 4\]"),
        ({"attention_mask": 2 * ONES}, r"`attention_mask` holds values other than 0 and 1"),
        ({"attention_mask": ONES * torch.tensor([[1], [0]])}, r"`attention_mask` is all zero for sentence 1"),
        ({"attention_mask": ONES.to("meta")}, r"`attention_mask` is on meta"),
    ],
)
def test_init_refuses(changes, message):
    arguments = {"embeddings": ZEROS, "attention_mask": ONES, "adv_init_mag": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        freelb_init(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adv_lr": -1.0}, r"`adv_lr` was -1.0; it must be a finite number >= 0.0"),
        ({"adv_lr": math.nan}, r"`adv_lr` was nan"),
        ({"adv_max_norm": -0.5}, r"`adv_max_norm` was -0.5.*0 means no projection"),
        ({"norm_type": "L2"}, r"`norm_type` was 'L2'; it must be one of 'l2', 'linf'"),
        ({"grad": ZEROS[:, :3]}, r"`grad` has shape \[2, 3, 3\]; it must be that of `delta`, \[2, 4, 3\]"),
        ({"grad": ZEROS.to("meta")}, r"`grad` is on meta and `delta` on cpu"),
        ({"delta": ZEROS[0], "grad": ZEROS[0]}, r"the embeddings have shape \[4, 3\]"),
        ({"attention_mask": ONES[:1]}, r"`attention_mask` has shape \[1, 4\].*\[2, 4\]"),
        ({"attention_mask": ONES / 2}, r"`attention_mask` holds values other than 0 and 1"),
        ({"attention_mask": 0 * ONES}, r"`attention_mask` is all zero for sentence 0"),
    ],
)
def test_step_refuses(changes, message):
    arguments = {"delta": ZEROS, "grad": ZEROS, "attention_mask": ONES, "adv_lr": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        freelb_step(**arguments)


def test_validate_false_skips_the_value_checks():
    """A sentence of padding alone gets no perturbation, rather than NaN."""
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    for norm_type in ("l2", "linf"):
        start = freelb_init(ZEROS, mask, 0.1, norm_type, validate=False)
        moved = freelb_step(start, torch.ones(2, 4, 3), mask, 0.1, 0.5, norm_type, validate=False)
        for delta in (start, moved):
            assert (delta[1] == 0).all()
            assert (delta[0] != 0).all()
    freelb_step(ZEROS, ZEROS, 2 * ONES, 0.1, validate=False)


@pytest.mark.parametrize("norm_type", ["l2", "linf"])
def test_compiles_without_a_graph_break(norm_type):
    torch._dynamo.reset()
    delta, grad = normal(4, 5, 6, seed=1), normal(4, 5, 6, seed=2)
    compiled = torch.compile(freelb_step, backend="eager", fullgraph=True)
    args = (delta, grad, MASK, 0.1, 0.5, norm_type)
    assert torch.equal(compiled(*args), freelb_step(*args))
    compiled = torch.compile(freelb_init, backend="eager", fullgraph=True)
    assert compiled(delta, MASK, 0.1, norm_type).shape == delta.shape


# --- properties -----------------------------------------------------------------------------------------------------


@st.composite
def steps(draw):
    """delta, grad, mask of any small shape, and positive step sizes."""
    batch, length, width = (draw(st.integers(1, n)) for n in (4, 7, 5))
    seed = draw(st.integers(0, 10**6))
    lengths = [draw(st.integers(1, length)) for _ in range(batch)]
    mask = torch.arange(length) < torch.tensor(lengths).unsqueeze(1)
    delta, grad = normal(batch, length, width, seed=seed), normal(batch, length, width, seed=seed + 1)
    return delta * mask.unsqueeze(-1), grad, mask, draw(st.floats(1e-3, 10.0)), draw(st.sampled_from(["l2", "linf"]))


@settings(max_examples=60, deadline=None)
@given(steps())
def test_without_projection_each_sentence_moves_by_adv_lr(step):
    delta, grad, mask, adv_lr, norm_type = step
    moved = freelb_step(delta, grad, mask, adv_lr, 0.0, norm_type) - delta
    expected = torch.full((len(delta),), adv_lr, dtype=torch.float64)
    torch.testing.assert_close(norms(moved, norm_type), expected, rtol=1e-9, atol=0)
    assert ((moved * grad).flatten(1).sum(1) > 0).all()  # uphill


@settings(max_examples=60, deadline=None)
@given(steps(), st.floats(1e-3, 3.0))
def test_with_projection_no_sentence_exceeds_the_norm(step, max_norm):
    delta, grad, mask, adv_lr, norm_type = step
    for dtype, eps in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        got = freelb_step(delta.to(dtype), grad.to(dtype), mask, adv_lr, max_norm, norm_type)
        assert (norms(got, norm_type) <= max_norm * (1 + eps)).all()
        assert (got[~mask] == 0).all()


@settings(max_examples=40, deadline=None)
@given(steps(), st.integers(-10, 10))
def test_the_gradients_magnitude_does_not_matter(step, exponent):
    delta, grad, mask, adv_lr, norm_type = step
    got = freelb_step(delta, grad * 2.0**exponent, mask, adv_lr, 0.5, norm_type)
    torch.testing.assert_close(got, freelb_step(delta, grad, mask, adv_lr, 0.5, norm_type), rtol=1e-12, atol=1e-14)
