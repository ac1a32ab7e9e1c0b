"""Batches by token budget: every example once, within the budget, as many for each rank, and the same again."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast.data.batching import TokenBatches, token_lengths


def of_all_ranks(lengths, batch_tokens, ranks=1, seed=0, epoch=0):
    """Batches by rank."""
    found = []
    for rank in range(ranks):
        batches = TokenBatches(lengths, batch_tokens, ranks=ranks, rank=rank, seed=seed)
        batches.set_epoch(epoch)
        found.append(list(batches))
        assert len(batches) == len(found[-1])
    return found


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=8, max_size=120),
    batch_tokens=st.integers(80, 200),
    ranks=st.integers(1, 4),
    epoch=st.integers(0, 2),
)
def test_every_example_once_within_the_budget_and_evenly(lengths, batch_tokens, ranks, epoch):
    found = of_all_ranks(lengths, batch_tokens, ranks, epoch=epoch)
    batches = [batch for rank in found for batch in rank]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) * max(lengths[i] for i in batch) <= batch_tokens
    assert len({len(rank) for rank in found}) == 1
    assert len(found[0]) == len(of_all_ranks(lengths, batch_tokens, ranks, seed=9, epoch=epoch + 1)[0])


def test_epochs_and_seeds_differ_and_repeat():
    lengths = np.random.RandomState(0).randint(5, 15, size=300).tolist()
    first = of_all_ranks(lengths, 60)
    assert of_all_ranks(lengths, 60) == first
    assert of_all_ranks(lengths, 60, epoch=1) != first
    assert of_all_ranks(lengths, 60, seed=1) != first
    sets = [{frozenset(batch) for batch in of_all_ranks(lengths, 60, epoch=epoch)[0]} for epoch in (0, 1)]
    assert len(sets[0] & sets[1]) < len(sets[0]) / 10  # sentences meet others, not only at another time


def test_hardly_any_padding_is_left():
    lengths = np.random.RandomState(0).randint(5, 60, size=50_000)
    (batches,) = of_all_ranks(lengths.tolist(), 4000)
    computed = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert computed < 1.01 * lengths.sum()
    assert np.mean([len(batch) * lengths[batch].max() for batch in batches]) > 0.9 * 4000


@pytest.mark.parametrize(
    ("lengths", "batch_tokens", "ranks", "message"),
    [
        ([3, 9], 8, 1, "`batch_tokens` was 8; the longest example has 9 tokens: raise it, or lower `max_length`"),
        ([3, 9], 0, 1, "`batch_tokens` was 0"),
        ([3], 8, 2, "`train_dataset` holds 1 examples; 2 ranks need one each"),
        ([9, 9, 9], 10, 2, "at which every batch is one example; 2 ranks cannot share 3 of them evenly: raise it"),
    ],
)
def test_what_cannot_be_cut_is_refused(lengths, batch_tokens, ranks, message):
    with pytest.raises(ValueError, match=message):
        TokenBatches(lengths, batch_tokens, ranks=ranks)


def test_lengths_come_from_the_column_or_the_ids():
    rows = {"input_ids": [[1, 2], [1, 2, 3], [1]], "length": [20, 30, 10]}
    dataset = datasets.Dataset.from_dict(rows)
    assert token_lengths(dataset) == [20, 30, 10]
    assert type(token_lengths(dataset)) is list
    assert token_lengths(dataset.select([2, 0])) == [10, 20]
    assert token_lengths(dataset.remove_columns("length")) == [2, 3, 1]
    assert token_lengths([{"input_ids": [1, 2]}]) == [2]
