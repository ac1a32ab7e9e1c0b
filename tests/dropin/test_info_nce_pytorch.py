"""The loss of info-nce-pytorch against its formula, restated: values and gradients in float64."""

import pytest
import torch
import torch.nn.functional as F

from infobert_fast.dropin.info_nce import InfoNCE, info_nce

N, M, WIDTH = 9, 5, 6


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def restated(query, positive, negatives, temperature, reduction, mode):
    query, positive = (F.normalize(t, dim=-1) for t in (query, positive))
    logits, target = query @ positive.t(), torch.arange(len(query))
    if negatives is not None:
        own = (query * positive).sum(1, keepdim=True)
        negatives = F.normalize(negatives, dim=-1)
        others = query @ negatives.t() if mode == "unpaired" else (query.unsqueeze(1) * negatives).sum(2)
        logits, target = torch.cat([own, others], 1), torch.zeros_like(target)
    return F.cross_entropy(logits / temperature, target, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("mode", [None, "unpaired", "paired"])
def test_it_is_the_formula(mode, reduction):
    inputs = [normal(N, WIDTH, seed=0), normal(N, WIDTH, seed=1)]
    if mode is not None:
        inputs.append(normal(*((M, WIDTH) if mode == "unpaired" else (N, M, WIDTH)), seed=2))
    loss = InfoNCE(temperature=0.2, reduction=reduction, negative_mode=mode or "unpaired")(*inputs)
    expected = restated(*inputs, *[None] * (mode is None), 0.2, reduction, mode)
    assert loss.shape == expected.shape
    weights = torch.linspace(1, 2, N, dtype=torch.float64)
    results = []
    for value in (loss, expected):
        total = ((weights if reduction == "none" else 1) * value).sum()
        results.append([value, *torch.autograd.grad(total, inputs)])
    for got, right in zip(*results, strict=True):
        assert (got - right).abs().max() < 1e-10


def test_the_defaults_are_those_of_the_package():
    query, positive = normal(N, WIDTH, seed=0), normal(N, WIDTH, seed=1)
    assert torch.equal(info_nce(query, positive), InfoNCE()(query, positive))
    assert abs(info_nce(query, positive) - restated(query, positive, None, 0.1, "mean", None)) < 1e-12
    assert vars(InfoNCE()).items() >= {"temperature": 0.1, "reduction": "mean", "negative_mode": "unpaired"}.items()
    assert list(InfoNCE().state_dict()) == []


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ((M, WIDTH), {"negative_mode": "paired"}, r"`negative_keys` has shape \[5, 6\]; with negative_mode='paired'"),
        ((M, 4), {}, "`negative_keys` is 4 wide; it must be 6 wide"),
        ((M, WIDTH), {"reduction": "max"}, "`reduction` was 'max'; it must be one of 'none', 'mean', 'sum'"),
        ((M, WIDTH), {"negative_mode": "hard"}, "`negative_mode` was 'hard'"),
        ((M, WIDTH), {"temperature": 0}, "`temperature` was 0"),
    ],
)
def test_refuses(keys, options, message):
    with pytest.raises(ValueError, match=message):
        info_nce(normal(N, WIDTH, seed=0), normal(N, WIDTH, seed=1), normal(*keys, seed=2), **options)
    with pytest.raises(ValueError, match=r"`positive_key` has shape \[3, 6\] and `query` \[9, 6\]; give one for each"):
        info_nce(normal(N, WIDTH, seed=0), normal(3, WIDTH, seed=1))
