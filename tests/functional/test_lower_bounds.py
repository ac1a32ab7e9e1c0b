"""NWJ and Donsker-Varadhan with the concatenating critic: the literal formulas, their edges, and their kernels."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from contrastive_cases import F64, assert_no_worse_than_eager, assert_same, critic_inputs, indices, value_and_grads

from infobert_fast import reference
from infobert_fast.functional import bounds, donsker_varadhan, dot_scores, info_nce, nwj, smile

SMILE = [functools.partial(bound, clip=0.5) for bound in (smile, reference.smile)]
BOUNDS = [(nwj, reference.nwj), (donsker_varadhan, reference.donsker_varadhan), SMILE]
IDS = ["nwj", "donsker_varadhan", "smile"]


@pytest.mark.parametrize(("bound", "literal"), BOUNDS, ids=IDS)
@pytest.mark.parametrize("include_pairs", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("pairs", [1, 2, 33, 130])
def test_equals_the_oracle(bound, literal, pairs, indexed, include_pairs):
    if pairs < 8 and (indexed or pairs == 1) and not include_pairs:
        return  # all pairs share one global row
    rows, distinct = (pairs // 2 + 1, pairs // 8 + 1) if indexed else (pairs, pairs)
    index = indices(pairs, rows, distinct) if indexed else (None, None)
    options = {"local_index": index[0], "pair_index": index[1], "include_pairs": include_pairs}
    inputs = critic_inputs(rows, distinct, hidden=40)
    got = value_and_grads(functools.partial(bound, **options), inputs)
    expected = value_and_grads(functools.partial(literal, **options), inputs)
    assert_same([got[0]], [expected[0]])
    # a lone pair's Donsker-Varadhan gradients are 0 but for the literal form's rounding
    for g, e in zip(got[1:], expected[1:], strict=True):
        assert (g - e).abs().max() <= 1e-10 * e.abs().max() + 1e-12


@pytest.mark.parametrize(("bound", "literal"), BOUNDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_no_worse_than_eager(bound, literal, dtype):
    index = indices(65, 65, 6)
    options = {"local_index": index[0], "pair_index": index[1]}
    fast, eager = (functools.partial(f, **options) for f in (bound, literal))
    assert_no_worse_than_eager(fast, eager, critic_inputs(65, 6, hidden=300, x_dim=24, y_dim=16), dtype)


@pytest.mark.parametrize(("bound", "literal"), BOUNDS, ids=IDS)
def test_reference_and_kernels(bound, literal):
    inputs = critic_inputs(9, 9)
    assert torch.equal(bound(*inputs, implementation="reference"), literal(*inputs))
    if not torch.cuda.is_available():  # float64 runs under the interpreter only
        kernels = value_and_grads(functools.partial(bound, implementation="triton"), inputs)
        assert_same(kernels, value_and_grads(literal, inputs))
    with pytest.raises(ValueError, match="`local` gives 4 pairs and `global_` 9"):
        bound(inputs[0][:4], *inputs[1:])
    with pytest.raises(TypeError, match="chunk_size"):
        bound(*inputs, chunk_size=3)


def test_a_constant_critic_knows_nothing():
    """T = c everywhere: Donsker-Varadhan 0 for any c, NWJ c - e^(c - 1), whose maximum is 0 at c = 1."""
    local, global_, w1, b1, w2, _ = critic_inputs(7, 7)
    for c in (-1.0, 1.0, 2.5):
        critic = (local, global_, w1, b1, 0 * w2, torch.full((1,), c, dtype=F64))
        assert abs(donsker_varadhan(*critic)) < 1e-14
        assert abs(nwj(*critic) - (c - math.exp(c - 1))) < 1e-14


def test_donsker_varadhan_lies_above_nwj_and_with_the_pairs_below_log_n():
    """log t <= t/e makes it the tighter of the two, for any critic."""
    for seed in range(5):
        inputs = critic_inputs(12, 12, seed=seed)
        for include_pairs in (False, True):
            assert nwj(*inputs, include_pairs=include_pairs) <= donsker_varadhan(*inputs, include_pairs=include_pairs)
        assert donsker_varadhan(*inputs, include_pairs=True) <= math.log(12)
        assert torch.isfinite(info_nce(*inputs))


@pytest.mark.parametrize("include_pairs", [False, True])
def test_a_shift_of_the_critic_costs_donsker_varadhan_nothing(include_pairs):
    """NWJ overflows, which its page says, and its gradient is not finite."""
    options = {"include_pairs": include_pairs}
    local, global_, w1, b1, w2, b2 = (tensor.float() for tensor in critic_inputs(12, 12))
    for shift, atol in ((200, 1e-4), (1e6, 1.0)):
        shifted = donsker_varadhan(local, global_, w1, b1, w2, b2 + shift, **options)
        torch.testing.assert_close(
            shifted, donsker_varadhan(local, global_, w1, b1, w2, b2, **options), rtol=0, atol=atol
        )
        leaf = local.clone().requires_grad_()
        bound = nwj(leaf, global_, w1, b1, w2, b2 + shift, **options)
        assert bound == -math.inf
        assert not torch.autograd.grad(bound, leaf)[0].isfinite().all()


def test_pairs_that_share_a_global_row_are_no_negatives():
    """Three pairs of two global rows: for pairs 0 and 1 pair 2 is the only negative, for pair 2 both others."""
    local, global_, *critic = critic_inputs(3, 2)
    owner = torch.tensor([0, 0, 1])
    table = reference._pairings(local, global_, *critic, None, owner)  # [i, j] = T(x_j, y_i)
    negatives = torch.stack([table[0, 2], table[1, 2], table[2, 0], table[2, 1]])
    got = nwj(local, global_, *critic, pair_index=owner)
    assert abs(got - (table.diagonal().mean() - torch.exp(negatives - 1).mean())) < 1e-12
    got = donsker_varadhan(local, global_, *critic, pair_index=owner)
    assert abs(got - (table.diagonal().mean() - negatives.exp().mean().log())) < 1e-12


def test_pairs_that_leave_no_negative_are_refused():
    local, global_, *critic = critic_inputs(3, 3)
    for x, y, index in ((local, global_, torch.zeros(3, dtype=torch.int64)), (local[:1], global_[:1], None)):
        with pytest.raises(ValueError, match=r"`include_pairs` was False, and each of the \d pairs is left out"):
            nwj(x, y, *critic, pair_index=index)


def one_hot_scores(width, pairs, seed, **options):
    """One-hot X = Y, uniform over ``width``, under the exact critic T = 1 + log p(y|x) / p(y), as a dot product:
    1 + log width on a match, elsewhere minus infinity, here -40."""
    symbols = torch.randint(width, (pairs,), generator=torch.Generator().manual_seed(seed))
    one_hot, one = F.one_hot(symbols, width).float(), torch.ones(pairs, 1)
    return dot_scores(
        torch.cat([(41 + math.log(width)) * one_hot, one], 1), torch.cat([one_hot, -40 * one], 1), **options
    )


@pytest.mark.parametrize(
    ("bound", "nats", "pairs"), [("nwj", 3, 64), ("nwj", 8, 64), ("donsker_varadhan", 6.93, 256)], ids=str
)
def test_the_mean_of_500_batches_is_the_truth(bound, nats, pairs):
    """Within three standard errors, far above log of the pairs; with them among the pairings it stays below it."""
    width = round(math.exp(nats))
    function = getattr(bounds, bound)
    values = torch.stack([function(one_hot_scores(width, pairs, n, include_pairs=False)) for n in range(500)])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - math.log(width)) < 3 * error < 0.2
    with_pairs = torch.stack([function(one_hot_scores(width, pairs, n)) for n in range(20)])
    assert with_pairs.max() <= math.log(pairs)
    assert values.mean() > math.log(pairs) or nats == 3


def test_the_mlp_critic_reaches_the_truth_too():
    """relu(x_k + y_k - 1) summed over k is a match of one-hot rows."""
    width, one = 20, torch.ones(20)
    critic = torch.cat([torch.eye(width)] * 2, 1), -one, (41 + math.log(width)) * one, torch.tensor([-40.0])
    symbols = torch.randint(width, (500, 64), generator=torch.Generator().manual_seed(0))
    values = torch.stack([nwj(rows, rows, *critic) for rows in F.one_hot(symbols, width).float()])
    assert abs(values.mean() - math.log(width)) < 3 * values.std() / math.sqrt(500)


def test_smile_is_what_its_paper_computes():
    """Scores of pairings are cut to [-1, 1]; those of pairs, 1, -1.5 and -2, are not."""
    local, global_ = torch.eye(2, dtype=F64), torch.eye(2, dtype=F64)
    w1, b1 = torch.cat([torch.eye(2, dtype=F64)] * 2, 1), -torch.ones(2, dtype=F64)  # a unit fires on its match alone
    critic = w1, b1, torch.tensor([3.0, 0.5], dtype=F64), torch.tensor([-2.0], dtype=F64)
    index = {"local_index": torch.tensor([0, 1, 0]), "pair_index": torch.tensor([0, 1, 1])}
    # T = 1 where both are 0, -1.5 where both are 1, else -2; the pairs (0,0), (1,1), (0,1) have 1, -1.5, -2
    # pairings without the pairs of a global row: y_0 with x of pairs 1, 2: -2, 1; y_1 with x of pair 0, twice: -2, -2
    expected = (1 - 1.5 - 2) / 3 - math.log((3 * math.exp(-1) + math.exp(1)) / 4)
    assert abs(smile(local, global_, *critic, clip=1.0, **index) - expected) < 1e-12
    unclipped = smile(local, global_, *critic, clip=100.0, **index)
    assert abs(unclipped - donsker_varadhan(local, global_, *critic, **index)) < 1e-12
    with pytest.raises(ValueError, match=r"`clip` was 0\.0"):
        smile(local, global_, *critic, clip=0.0)
