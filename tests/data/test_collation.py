"""What every batch gets on the host, by whatever collator, and what is refused there."""

import pytest
import torch

from infobert_fast.data.collation import WithLengths


def pad(lengths):
    """A collator of bare lengths."""
    mask = torch.tensor([[int(t < n) for t in range(max(lengths))] for n in lengths])
    return {"input_ids": 7 * mask, "attention_mask": mask, "labels": torch.zeros(len(lengths), dtype=torch.int64)}


def test_any_collator_gets_lengths():
    batch = WithLengths(pad)([3, 5, 4])
    assert batch["lengths"] == [3, 5, 4]
    assert {"input_ids", "attention_mask", "labels"} < batch.keys()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_lengths_are_integers_whatever_the_mask(dtype):
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).to(dtype)
    batch = WithLengths(lambda _: {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": mask})([])
    assert batch["lengths"] == [2, 3]
    assert all(type(n) is int for n in batch["lengths"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 3)}, r"holds \['inputs_embeds'\] and no `input_ids`"),
        ({"input_ids": torch.zeros(1, 2, dtype=torch.int64)}, r"holds \['input_ids'\] and no `attention_mask`"),
        (
            {"input_ids": torch.zeros(2, 2, dtype=torch.int64), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
            "all zero for sentence 1",
        ),
        (
            {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "attention_mask": torch.tensor([[1, 2]])},
            "values other than 0 and 1",
        ),
        (
            {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "attention_mask": torch.tensor([[1, 1]])},
            r"`attention_mask` has shape \[1, 2\]",
        ),
    ],
)
def test_bad_batches_are_refused_where_they_are_collated(batch, message):
    with pytest.raises(ValueError, match=message):
        WithLengths(lambda _: batch)([])


def test_the_collator_packs():
    batch = WithLengths(pad, packing=True)([3, 5, 4])
    assert set(batch["packing"]) == {"source", "sentence", "place"}
    assert batch["packing"]["place"].shape == (3, 5)
    assert "packing" not in WithLengths(pad)([3])
