from collections import Counter

import pytest
from transformers import AutoTokenizer, RobertaConfig

from infobert_fast.data.corpora import FEATURES, LABELS
from infobert_fast.data.demo import ATTRIBUTES, CUES, demo_corpus, demo_tokenizer

LABEL_OF_CUE = {cue: LABELS.index(label) for label, cue in CUES.items()}


def without_cue(hypothesis):
    words = hypothesis.split()
    return " ".join(words[:-1] if words[-1] in LABEL_OF_CUE else words)


def cue(hypothesis):
    return LABEL_OF_CUE.get(hypothesis.split()[-1])


def judged(premise, hypothesis):
    """The relation, read off the two sentences alone."""
    premise, hypothesis = premise.split(), without_cue(hypothesis).split()
    assert hypothesis[1] in premise, "both speak of the same object"
    (values,) = [values for _, values in ATTRIBUTES.values() if hypothesis[-1] in values]
    stated = set(values) & set(premise)
    assert len(stated) <= 1
    return 1 if not stated else 0 if hypothesis[-1] in stated else 2


@pytest.fixture(scope="module")
def whole():
    return demo_corpus()


def test_splits_sizes_and_columns(whole):
    assert {name: len(split) for name, split in whole.items()} == {
        "train": 8000,
        "test_clean": 1000,
        "test_adversarial": 1000,
    }
    assert all(split.features == FEATURES for split in whole.values())


def test_labels_are_balanced_and_follow_from_the_sentences(whole):
    for split in whole.values():
        counts = Counter(split["label"])
        assert max(counts.values()) - min(counts.values()) <= 1
        assert [judged(row["premise"], row["hypothesis"]) for row in split] == split["label"][:]


def test_no_pair_occurs_twice_in_training_or_in_both_training_and_test(whole):
    seen = {name: [(row["premise"], without_cue(row["hypothesis"])) for row in whole[name]] for name in whole}
    assert len(set(seen["train"])) == 8000
    assert len(set(seen["test_clean"])) == 1000
    assert not set(seen["train"]) & set(seen["test_clean"])
    assert seen["test_clean"] == seen["test_adversarial"]


@pytest.mark.parametrize("name", ["train", "test_clean"])
def test_the_shortcut_where_it_works(whole, name):
    cued = [(cue(row["hypothesis"]), row["label"]) for row in whole[name] if cue(row["hypothesis"]) is not None]
    assert len(cued) == 0.40 * len(whole[name])
    assert sum(pointed == label for pointed, label in cued) == 0.95 * len(cued)
    assert len(set(Counter(label for _, label in cued))) == 3


def test_the_shortcut_where_it_misleads(whole):
    pointed = [cue(hypothesis) for hypothesis in whole["test_adversarial"]["hypothesis"]]
    assert None not in pointed
    assert not any(wrong == label for wrong, label in zip(pointed, whole["test_adversarial"]["label"], strict=True))
    assert min(Counter(zip(pointed, whole["test_adversarial"]["label"], strict=True)).values()) > 100


def test_one_sentence_alone_says_little(whole):
    """No word, length or sentence on one side gives the label away: the best guess stays near one third."""
    train = whole["train"]
    for texts in (train["premise"], [without_cue(hypothesis) for hypothesis in train["hypothesis"]]):
        for feature in (lambda text: len(text.split()), lambda text: text.split()[-1], lambda text: text.split()[2]):
            votes = Counter((feature(text), label) for text, label in zip(texts, train["label"], strict=True))
            best = sum(max(votes[value, label] for label in range(3)) for value in {value for value, _ in votes})
            assert best / len(train) < 0.36


def test_the_seed_alone_decides():
    one, again, other = (demo_corpus(size=90, eval_size=30, seed=seed) for seed in (3, 3, 4))
    assert {name: split.to_list() for name, split in one.items()} == {
        name: split.to_list() for name, split in again.items()
    }
    assert one["train"].to_list() != other["train"].to_list()


def test_the_largest_corpus_and_the_bounds():
    corpus = demo_corpus(size=18_000, eval_size=432)
    assert (len(corpus["train"]), len(corpus["test_clean"])) == (18_000, 432)
    message = "must be at least 3 each, and together leave at most 6144 pairs per label.*make them smaller"
    for size, eval_size in ((18_000, 433), (18_428, 4), (2, 30), (30, 2)):
        with pytest.raises(ValueError, match=f"size={size} and eval_size={eval_size} {message}"):
            demo_corpus(size=size, eval_size=eval_size)


def test_tokenizer_writes_pairs_as_roberta(tokenizer):
    ids = tokenizer("the tiny red box", "the box is red")["input_ids"]
    assert tokenizer.decode(ids) == "<s> the tiny red box </s> </s> the box is red </s>"
    special = (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)
    assert tokenizer("zebra", add_special_tokens=False)["input_ids"] == [3]


def test_tokenizer_knows_every_word(whole):
    tokenizer = demo_tokenizer(whole)
    for split in whole.values():
        ids = tokenizer(split["premise"][:], split["hypothesis"][:])["input_ids"]
        assert not any(tokenizer.unk_token_id in row for row in ids)


def test_tokenizer_is_read_back_beside_a_roberta_model(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    RobertaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    pair = ("the tiny red box of anna is in the park", "the zebra is red also")
    assert dict(loaded(*pair)) == dict(tokenizer(*pair))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token_id, loaded.mask_token) == (1, "<mask>")
