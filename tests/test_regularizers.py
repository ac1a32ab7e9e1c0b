"""The two regularisers from hidden states, each against its literal form."""

import copy
import math

import numpy as np
import pytest
import torch

from infobert_fast import InfoNCE, functional, reference
from infobert_fast.regularizers import (
    AFR_VERSIONS,
    VERSIONS,
    AnchoredFeature,
    InformationBottleneck,
)

LENGTHS = [9, 4, 6, 1]
HIDDEN = 8


@pytest.fixture
def states():
    """``embedded, last_hidden, grad, attention_mask`` of sentences padded on the right."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for i, n in enumerate(LENGTHS):
        mask[i, :n] = 1
    shape = (*mask.shape, HIDDEN)
    embedded, last_hidden, grad = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    return embedded.requires_grad_(), last_hidden.requires_grad_(), grad, mask


@pytest.fixture
def critic():
    torch.manual_seed(1)
    critic = InfoNCE(HIDDEN, HIDDEN, 6).double()
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return critic


def gradients_of(value, *tensors):
    return torch.autograd.grad(value, tensors, allow_unused=True)


def test_version_numbers():
    assert [VERSIONS[v] for v in range(-1, 7)] == [
        None,
        "learned-flat",
        "learned-tokens",
        "sentence",
        "tokens",
        None,
        "sentence",
        "tokens",
    ]
    assert AFR_VERSIONS == (4, 5, 6)


# ---- the information bottleneck


@pytest.mark.parametrize("kind", ["tokens", "sentence"])
def test_exact_bottleneck(states, kind):
    embedded, last_hidden, _, mask = states
    bound = InformationBottleneck(kind)(embedded, last_hidden, mask, LENGTHS)
    rows = embedded[mask.bool()] if kind == "tokens" else last_hidden[:, 0]
    expected = reference.club(rows)
    torch.testing.assert_close(bound, expected, atol=1e-12, rtol=0)
    source = embedded if kind == "tokens" else last_hidden
    torch.testing.assert_close(gradients_of(bound, source), gradients_of(expected, source), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["tokens", "sentence"])
def test_sampled_bottleneck_draws_partners_among_tokens(states, kind):
    embedded, last_hidden, _, mask = states
    sampled = InformationBottleneck(kind, "sampled")
    exact = InformationBottleneck(kind)(embedded, last_hidden, mask, LENGTHS)
    generator = torch.Generator().manual_seed(3)
    draws = torch.stack([sampled(embedded, last_hidden, mask, LENGTHS, generator) for _ in range(2000)]).detach()
    assert abs(draws.mean() - exact) < 5 * draws.std() / math.sqrt(len(draws))
    assert draws.std() > 0.1
    first = sampled(embedded, last_hidden, mask, LENGTHS, torch.Generator().manual_seed(3))
    assert torch.equal(first.detach(), draws[0])


@pytest.mark.parametrize("kind", ["tokens", "learned-flat", "learned-tokens"])
@pytest.mark.parametrize("sampling", ["exact", "sampled"])
def test_padding_takes_no_part_in_the_bottleneck(states, kind, sampling):
    """Other numbers in padding, the same bound; and no gradient reaches padding."""
    embedded, last_hidden, _, mask = states
    settings = {} if kind == "tokens" else {"hidden_size": HIDDEN, "max_length": 12}
    bounds = []
    for noise in (0.0, 1e3):
        torch.manual_seed(4)
        bottleneck = InformationBottleneck(kind, sampling, **settings).double()
        padded = (embedded + noise * (1 - mask).unsqueeze(-1)).detach().requires_grad_()
        last = (last_hidden + noise * (1 - mask).unsqueeze(-1)).detach().requires_grad_()
        generator = torch.Generator().manual_seed(5)
        bounds.append(bottleneck(padded, last, mask, LENGTHS, generator))
        for grad in gradients_of(bounds[-1], padded, last):
            assert grad is None or not grad[mask == 0].any()
    assert bounds[0].item() == pytest.approx(bounds[1].item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["learned-flat", "learned-tokens"])
def test_learned_bottleneck_draws_from_the_generator(states, kind):
    """And from it alone, so that a step can be repeated."""
    embedded, last_hidden, _, mask = states
    torch.manual_seed(4)
    bottleneck = InformationBottleneck(kind, "sampled", hidden_size=HIDDEN, max_length=12).double()
    state = torch.get_rng_state()
    values = [
        copy.deepcopy(bottleneck)(embedded, last_hidden, mask, LENGTHS, torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampling", ["exact", "sampled"])
@pytest.mark.parametrize("kind", ["learned-flat", "learned-tokens"])
def test_learned_bottleneck_fits_then_bounds(states, kind, sampling):
    embedded, last_hidden, _, mask = states
    torch.manual_seed(4)
    bottleneck = InformationBottleneck(kind, sampling, hidden_size=HIDDEN, max_length=12).double()
    twin = copy.deepcopy(bottleneck.club)
    twin.optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    if kind == "learned-tokens":
        x, y = embedded[mask.bool()], last_hidden[mask.bool()]
    else:
        x = torch.zeros(len(LENGTHS), 12, HIDDEN, dtype=torch.float64)
        x[:, : embedded.shape[1]] = embedded * mask.unsqueeze(-1)
        x, y = x.flatten(1), last_hidden[:, 0]

    torch.manual_seed(6)
    bound = bottleneck(embedded, last_hidden, mask, LENGTHS)
    assert all(p.grad is None and p.requires_grad for p in bottleneck.parameters())
    grads = gradients_of(bound, embedded, last_hidden, *bottleneck.parameters())
    assert all(grad is None for grad in grads[2:])  # the bound never reaches the network

    (-reference.gaussian_log_likelihood(twin.p_mu(x.detach()), twin.p_logvar(x.detach()), y.detach())).backward()
    twin.optimizer.step()
    torch.manual_seed(6)
    mu, logvar = twin.p_mu(x), twin.p_logvar(x)
    if sampling == "exact":
        expected = reference.gaussian_club(mu, logvar, y)
    else:
        expected = reference.gaussian_club_sampled(mu, logvar, y, torch.randint(len(y), (len(y),)))
    torch.testing.assert_close(bound, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(grads[:2], gradients_of(expected, embedded, last_hidden), atol=1e-10, rtol=0)
    for ours, literal in zip(bottleneck.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, literal, atol=1e-12, rtol=0)


def test_bottleneck_refusals(states):
    embedded, last_hidden, _, mask = states
    with pytest.raises(ValueError, match="`kind` was 'words'; it must be one of 'learned-flat'"):
        InformationBottleneck("words")
    with pytest.raises(ValueError, match="`ib_sampling` was 'all'"):
        InformationBottleneck("tokens", "all")
    with pytest.raises(ValueError, match="`hidden_size` was None"):
        InformationBottleneck("learned-tokens")
    with pytest.raises(ValueError, match="`max_length` was None"):
        InformationBottleneck("learned-flat", hidden_size=HIDDEN)
    short = InformationBottleneck("learned-flat", hidden_size=HIDDEN, max_length=8).double()
    with pytest.raises(ValueError, match="`max_length` was 8; a batch is 9 tokens long: raise it"):
        short(embedded, last_hidden, mask, LENGTHS)


# ---- the anchored features


def literal_afr(critic, embedded, sentence, grad, mask, cl, ch, *, size=None, seed=42):
    """Pairs listed sentence by sentence, shuffled by NumPy's legacy generator, cut, and the chunks averaged."""
    pairs = []
    for i in range(len(mask)):
        norms = [(float(grad[i, t].norm()), t) for t in range(mask.shape[1]) if mask[i, t]]
        ranked = [t for _, t in sorted(norms)]
        n = len(ranked)
        pairs += [(embedded[i, t], sentence[i]) for t in ranked[math.ceil(n * cl) : math.ceil(n * ch)]]
    if size is not None:
        order = np.arange(len(pairs))
        np.random.RandomState(seed).shuffle(order)
        pairs = [pairs[p] for p in order]
    size = size or len(pairs)
    w1, b1, w2, b2 = critic.parameters()
    bounds = []
    for start in range(0, len(pairs), size):
        x, y = (torch.stack(side) for side in zip(*pairs[start : start + size], strict=True))
        bounds.append(reference.info_nce(x, y, w1, b1, w2.flatten(), b2))
    return torch.stack(bounds).mean()


@pytest.mark.parametrize("negatives", ["chunk", "batch"])
@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize(("cl", "ch"), [(0.5, 0.9), (0.0, 1.0), (0.3, 0.7)])
def test_anchored_feature(states, critic, negatives, seed, cl, ch):
    """Values, and gradients in local features, sentence features and critic; the last chunk is ragged."""
    embedded, last_hidden, grad, mask = states
    bound = AnchoredFeature(cl, ch, negatives, seed)(critic, embedded, last_hidden[:, 0], grad, mask, LENGTHS)
    size = len(LENGTHS) if negatives == "chunk" else None
    expected = literal_afr(critic, embedded, last_hidden[:, 0], grad, mask, cl, ch, size=size, seed=seed)
    torch.testing.assert_close(bound, expected, atol=1e-12, rtol=0)
    tensors = (embedded, last_hidden, *critic.parameters())
    actual, wanted = gradients_of(bound, *tensors), gradients_of(expected, *tensors)
    assert all(grad.any() for grad in wanted)
    torch.testing.assert_close(actual, wanted, atol=1e-12, rtol=0)
    assert not actual[0][mask == 0].any()


def test_the_shuffle_depends_on_the_number_of_pairs_alone(states, critic):
    embedded, last_hidden, grad, mask = states
    afr = AnchoredFeature(0.0, 1.0)
    first, second = (afr(critic, embedded, last_hidden[:, 0], grad, mask, LENGTHS) for _ in range(2))
    assert torch.equal(first, second)
    other = AnchoredFeature(0.0, 1.0, seed=1)(critic, embedded, last_hidden[:, 0], grad, mask, LENGTHS)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("negatives", ["chunk", "batch"])
def test_no_anchor_is_zero_with_the_critic_in_the_graph(states, critic, negatives):
    embedded, last_hidden, grad, mask = states
    bound = AnchoredFeature(0.5, 0.5, negatives)(critic, embedded, last_hidden[:, 0], grad, mask, LENGTHS)
    assert bound.item() == 0
    grads = gradients_of(bound, embedded, last_hidden, *critic.parameters())
    assert all(grad is not None and not grad.any() for grad in grads)


def test_gradients_arrive_in_the_same_order_with_and_without_anchors(states, critic):
    """DeepSpeed lays gradients side by side as they arrive and adds ranks up: one order on all ranks, whatever each
    rank's number of anchors and chunks.
    """
    embedded, last_hidden, grad, mask = states
    orders, order = [], []
    for name, parameter in [("embedded", embedded), ("last_hidden", last_hidden), *critic.named_parameters()]:
        parameter.register_post_accumulate_grad_hook(lambda parameter, name=name: order.append(name))
    for window, negatives in [((0.5, 0.5), "chunk"), ((0.5, 0.9), "chunk"), ((0.1, 0.2), "chunk"), ((0, 1), "batch")]:
        order.clear()
        bound = AnchoredFeature(*window, negatives)(critic, embedded * 1, (last_hidden * 1)[:, 0], grad, mask, LENGTHS)
        bound.backward()
        orders.append(list(order))
    assert len(orders[0]) == 6
    assert all(other == orders[0] for other in orders)


def test_nan_in_gives_nan_out(states, critic):
    embedded, last_hidden, grad, mask = states
    broken = embedded.detach().clone()
    broken[0, 0] = math.nan
    for window in ((0.0, 1.0), (0.5, 0.5)):
        bound = AnchoredFeature(*window)(critic, broken, last_hidden[:, 0], grad, mask, LENGTHS)
        assert bound.isnan()
    assert InformationBottleneck()(broken, last_hidden, mask, LENGTHS).isnan()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cl": 0.9, "ch": 0.5}, "`cl` was 0.9 and `ch` 0.5; `cl` must not exceed `ch`"),
        ({"cl": -0.1}, "`cl` was -0.1"),
        ({"ch": 1.5}, "`ch` was 1.5"),
        ({"negatives": "ranks"}, "`negatives` was 'ranks'; it must be one of 'chunk', 'batch', 'all'"),
    ],
    ids=str,
)
def test_anchored_feature_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        AnchoredFeature(**settings)


def test_one_sentence_in_chunks_of_one_is_zero(states, critic):
    """With a single sentence each chunk holds one pair, which has nothing to be told apart from."""
    embedded, last_hidden, grad, mask = (tensor[:1] for tensor in states)
    bound = AnchoredFeature()(critic, embedded, last_hidden[:, 0], grad, mask, LENGTHS[:1])
    assert bound.item() == pytest.approx(0, abs=1e-12)
    together = AnchoredFeature(negatives="batch")(critic, embedded, last_hidden[:, 0], grad, mask, LENGTHS[:1])
    assert abs(together.item()) > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tokens", "sentence", "learned-tokens", "learned-flat"])
@pytest.mark.parametrize("sampling", ["exact", "sampled"])
def test_the_bottleneck_does_not_wait_for_the_device(states, kind, sampling):
    embedded, last_hidden, _, mask = (tensor.cuda() for tensor in states)
    bottleneck = InformationBottleneck(kind, sampling, hidden_size=HIDDEN, max_length=12).double().cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    expected = functional.club(embedded, mask)
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            bound = bottleneck(embedded, last_hidden, mask, LENGTHS, generator)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if (kind, sampling) == ("tokens", "exact"):
        torch.testing.assert_close(bound, expected)
