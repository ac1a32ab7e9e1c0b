"""Any bound with any critic, against tables of scores; pairs are left out, and scores clipped, in the sum."""

from __future__ import annotations

import math

import pytest
import torch
from contrastive_cases import F64, assert_same, critic_inputs, value_and_grads

from infobert_fast import reference
from infobert_fast.functional import bounds, dot_scores, mlp_scores

IMPLEMENTATIONS = ["torch"] + ["triton"] * (not torch.cuda.is_available())  # float64 runs under the interpreter only
P, LOCAL, GLOBAL = 23, 12, 7
LOCAL_INDEX, PAIR_INDEX = torch.arange(P) * 5 % LOCAL, torch.arange(P) * 3 % GLOBAL


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def literal(bound, table, owner, include_pairs, clip):
    """A bound of ``table[i, j]``, the fixed row's pairs left out where ``owner`` is equal."""
    taken = table if clip is None else table.clamp(-clip, clip)
    keep = torch.ones_like(table, dtype=torch.bool) if include_pairs else owner.unsqueeze(1) != owner
    positive = table.diagonal().mean()
    if bound == "nwj":
        return positive - torch.exp(taken[keep] - 1).mean()
    if bound == "donsker_varadhan":
        return positive - taken[keep].exp().mean().log()
    number = keep.sum(1).to(F64)
    return positive - (torch.logsumexp(taken.masked_fill(~keep, -math.inf), 1) - number.log()).mean()


@pytest.mark.parametrize("bound", ["info_nce", "nwj", "donsker_varadhan"])
@pytest.mark.parametrize("critic", ["mlp", "dot", "dot over local", "cosine", "bilinear"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_bound_with_any_critic(bound, critic, implementation):
    for include_pairs, clip, indexed in (
        (False, None, True),
        (False, 0.4, True),
        (True, 0.4, False),
        (False, None, False),
    ):
        owner_of_rows = PAIR_INDEX if critic in ("mlp", "dot over local") else LOCAL_INDEX
        owner = owner_of_rows if indexed else torch.arange(GLOBAL)
        local_rows, index = (LOCAL, (LOCAL_INDEX, PAIR_INDEX)) if indexed else (GLOBAL, (None, None))
        which = {"local_index": index[0], "pair_index": index[1], "include_pairs": include_pairs, "clip": clip}
        which["implementation"] = implementation
        if critic == "mlp":
            inputs = critic_inputs(local_rows, GLOBAL, hidden=6)

            def scores(*x, which=which):
                return mlp_scores(*x, **which)

            def table(*x, index=index):
                return reference._pairings(*x, *index)
        else:
            name = critic.split()[0]
            inputs = [normal(local_rows, 4, seed=1), normal(GLOBAL, 4, seed=2), torch.tensor(0.9, dtype=F64)]
            inputs += [normal(4, 4, seed=3)] * (name == "bilinear")
            over = "local" if "local" in critic else "global_"

            def scores(x, y, scale, weight=None, name=name, over=over, which=which):
                return dot_scores(x, y, critic=name, scale=scale, weight=weight, over=over, **which)

            def table(x, y, scale, weight=None, name=name, over=over, index=index):
                x, y = (t if i is None else t[i] for t, i in zip((x, y), index, strict=True))
                if name == "cosine":
                    x, y = (t / t.norm(dim=1, keepdim=True) for t in (x, y))
                dots = scale * ((x if weight is None else x @ weight) @ y.t())
                return dots.t() if over == "local" else dots

        got = value_and_grads(lambda *x, f=scores: getattr(bounds, bound)(f(*x)), inputs)
        expected = value_and_grads(
            lambda *x, f=table, o=owner, i=include_pairs, c=clip: literal(bound, f(*x), o, i, c), inputs
        )
        assert_same(got, expected)


def test_labels_without_the_pairs_leave_out_a_label_whole():
    labels = torch.arange(9) // 2
    x, y = normal(9, 4, seed=1), normal(9, 4, seed=2)
    got = bounds.donsker_varadhan(dot_scores(x, y, labels=labels, include_pairs=False))
    table = x @ y.t()
    others = table[labels.unsqueeze(1) != labels]
    assert abs(got - (table.diagonal().mean() - others.exp().mean().log())) < 1e-12


def test_the_clip_acts_in_the_sums_alone():
    x = 10 * torch.eye(4, dtype=F64)
    got = bounds.donsker_varadhan(dot_scores(x, x, clip=1.0))
    assert abs(got - (100 - math.log((math.e + 3) / 4))) < 1e-12
    with pytest.raises(ValueError, match="`clip` was 0; it must be a finite number >= 1e-06"):
        dot_scores(x, x, clip=0)


def test_a_lone_pair_gives_exactly_0_unless_its_score_is_clipped():
    x = torch.tensor([[3.0]], dtype=F64)
    for bound in (bounds.info_nce, bounds.donsker_varadhan):
        assert bound(dot_scores(x, x)) == 0
        assert abs(bound(dot_scores(x, x, clip=1.0)) - 8) < 1e-12
