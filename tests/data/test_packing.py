"""Every token lies in one place of the rows and is found again, and little of them is empty."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infobert_fast.data.packing import pack_sentences


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), extra=st.integers(0, 3))
def test_every_token_has_its_place(lengths, extra):
    width = max(lengths) + extra
    source, sentence, place = pack_sentences(lengths, width)
    assert source.shape == sentence.shape
    for i, n in enumerate(lengths):
        assert (place[i, n:] == -1).all()
        for t in range(n):
            assert source.flatten()[place[i, t]] == i * width + t
            assert sentence.flatten()[place[i, t]] == i
        assert (place[i, 1:n] - place[i, : n - 1] == 1).all()  # a sentence stays together
    assert (sentence >= 0).sum() == sum(lengths)
    assert source.numel() <= len(lengths) * max(lengths)  # never worse than padding


def test_rows_are_nearly_full():
    random = np.random.RandomState(0)
    for count in (16, 32, 64):
        shares = []
        for _ in range(20):
            lengths = random.randint(5, 60, size=count).tolist()
            source, *_ = pack_sentences(lengths, max(lengths))
            shares.append(source.numel() / sum(lengths))
            assert source.shape[1] <= 3 * max(lengths)
        assert np.mean(shares) < 1.03


def test_equal_sentences_stay_rows():
    source, sentence, _ = pack_sentences([8] * 4, 8)
    assert source.shape == (4, 8)
    assert torch.equal(sentence, torch.arange(4)[:, None].expand(4, 8)[sentence[:, 0]])
