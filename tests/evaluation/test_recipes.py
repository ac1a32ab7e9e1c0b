"""What each recipe makes of a word, by hand: signs of several characters, words of one letter, no words at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infobert_fast.evaluation.attack import Limits, attack, run
from infobert_fast.evaluation.recipes import (
    ALIKE,
    RECIPES,
    Text,
    characters,
    graphemes,
    spacing,
    substitutions,
    unicode,
)

ACUTE = "e\u0301"  # a letter and its mark
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people joined to one sign
KA = "\u0915\u093e"  # a Devanagari letter and its vowel
MANY = 10_000


def words(recipe, word, count=MANY):
    return [one.words[0] for one in recipe(Text.split(word), 0, count)]


def texts(recipe, text, place, count=MANY):
    return [str(one) for one in recipe(Text.split(text), place, count)]


# ---- texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a well-made film's end.", ("a", "well-made", "film's", "end")),
        (f"caf{ACUTE} {KA} x", (f"caf{ACUTE}", KA, "x")),
        (f"{FAMILY} \u2764\ufe0f ok", ("ok",)),  # no word begins with a mark or a picture
        ("", ()),
        (" ... ", ()),
    ],
)
def test_words_of_a_text(text, expected):
    split = Text.split(text)
    assert split.words == expected
    assert str(split) == text.strip()


@given(st.text())
def test_a_text_is_its_words_and_gaps(text):
    assert str(Text.split(text)) == text.strip()


@given(st.text(), st.sampled_from(list(RECIPES)), st.integers(1, 5))
def test_any_text_is_changed_in_one_place_and_never_lost(text, name, count):
    split, recipe = Text.split(text), RECIPES[name](0)
    for place in range(len(split.words)):
        changed = recipe(split, place, count)
        assert len(changed) <= count
        assert changed == RECIPES[name](0)(split, place, count)
        for one in changed:
            assert str(one) != str(split)
            assert [w for i, w in enumerate(one.words) if i != place] == [
                w for i, w in enumerate(split.words) if i != place
            ]


# ---- slips of the hand


def test_every_slip_of_a_short_word():
    # of "hi": "hi" keeps its h; i lies between u and o, over j and k
    assert words(characters(), "hi") == ["hu", "ho", "hj", "hk", "hiu", "hio", "hij", "hik"]


def test_swaps_and_deletions_spare_the_first_letter():
    found = words(characters(), "abcd")
    assert {"acbd", "abdc", "acd", "abd", "abc"} < set(found)
    assert "bacd" not in found
    assert "bcd" not in found
    assert len(found) == len(set(found))
    assert all(word[0] == "a" for word in found)


def test_case_stays():
    assert {"OJ", "OL", "OKM"} < set(words(characters(), "OK"))
    assert not [word for word in words(characters(), "OK") if word != word.upper()]


@pytest.mark.parametrize("word", ["a", "I", "7", ACUTE, KA])
def test_a_word_of_one_sign_has_no_slip(word):
    assert words(characters(), word) == []


def test_signs_of_several_characters_stay_whole():
    found = words(characters(), f"c{ACUTE}t")
    assert {f"ct{ACUTE}", "ct", f"c{ACUTE}{ACUTE}t"} < set(found)  # no key beside it: doubled
    for word in found:
        assert "\u0301" not in [sign[0] for sign in graphemes(word)]
        assert graphemes(word)[0] == "c"


def test_equal_neighbours_are_not_swapped():
    assert "aab" not in words(characters(), "aab")


# ---- signs that look alike


def test_every_disguise_of_a_short_word():
    a, o = ALIKE["a"], ALIKE["o"]
    assert words(unicode(), "ao") == [a + o, "a\u200bo", "\u202eoa\u202c", "\uff41\uff4f", f"{a}o", f"a{o}"]
    assert all(len(sign) == 1 and sign != letter and sign.isalpha() for letter, sign in ALIKE.items())
    assert all(letter.isupper() == sign.isupper() for letter, sign in ALIKE.items() if letter != "l")


def test_disguises_of_single_and_of_unknown_signs():
    assert words(unicode(), "a") == [ALIKE["a"], "\u202ea\u202c", "\uff41"]
    assert words(unicode(), ACUTE) == [f"\u202e{ACUTE}\u202c"]  # neither alike nor wide
    assert f"\u202et{ACUTE}c\u202c" in words(unicode(), f"c{ACUTE}t")  # the mark stays on its letter
    assert f"c\u200b{ACUTE}\u200bt" in words(unicode(), f"c{ACUTE}t")
    assert f"{KA}\u200b{KA}" in words(unicode(), KA + KA)


# ---- spaces


def test_words_are_split_between_signs_and_joined():
    assert texts(spacing(), "a bomb now", 1) == ["a bombnow", "a b omb now", "a bo mb now", "a bom b now"]
    assert texts(spacing(), "a bomb now", 0) == ["abomb now"]  # one letter cannot be split
    assert texts(spacing(), "a bomb now", 2) == ["a bomb n ow", "a bomb no w"]  # nothing follows
    assert texts(spacing(), "bomb, now", 0)[0] == "b omb, now"  # a comma stands between
    assert texts(spacing(), f"c{ACUTE}t", 0) == [f"c {ACUTE}t", f"c{ACUTE} t"]
    assert texts(spacing(), "a bomb now", 1, 1) == ["a bombnow"]


# ---- draws


def test_of_many_changes_some_are_drawn_the_same_ones_each_time():
    whole = words(characters(), "extraordinary")
    some = words(characters(3), "extraordinary", 5)
    assert len(some) == 5
    assert [word for word in whole if word in some] == some  # in their order
    assert some == words(characters(3), "extraordinary", 5)
    assert some != words(characters(4), "extraordinary", 5)


# ---- in an attack


def outcome(text, recipe, tokens):
    """The attack on a model that answers 1 while a token of ``tokens`` is in the text."""
    seen = []

    def score(questions):
        seen.extend(text for _, text in questions)
        right = np.array([float(bool(set(text.split()) & tokens)) for _, text in questions])
        return np.stack([1 - right, right], axis=1)

    ((_, result),) = run([attack(text, 1, [recipe], Limits())], score)
    return result, seen


@pytest.mark.parametrize("name", RECIPES)
def test_a_keyword_filter_is_fooled(name):
    result, _ = outcome("make a bomb now", RECIPES[name](0), {"bomb"})
    assert (result.status, result.changed, result.prediction) == ("fooled", 1, 0)
    assert "bomb" not in result.text.split()


@pytest.mark.parametrize("text", ["", " ", "...", FAMILY])
@pytest.mark.parametrize("name", RECIPES)
def test_texts_without_words_are_asked_about_once(name, text):
    result, seen = outcome(text, RECIPES[name](0), {FAMILY, "..."})
    assert (result.queries, result.changed, result.words) == (1, 0, 0)
    assert seen == [text]


def test_a_word_that_no_recipe_changes_is_not_deleted():
    result, seen = outcome("a", characters(), {"a"})
    assert (result.status, seen) == ("robust", ["a"])


def test_empty_substitutes_take_the_word_and_its_space():
    found = substitutions({"bad": [""]})(Text.split("so bad a film"), 1, 5)
    assert [str(one) for one in found] == ["so a film"]


def test_words_of_which_a_tokenizer_leaves_nothing(nli_folder):
    """A tokenizer that drops every sign of a text still gives the model its special tokens."""
    from tokenizers import normalizers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from infobert_fast.evaluation.scoring import probabilities

    model = AutoModelForSequenceClassification.from_pretrained(nli_folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(nli_folder / "model")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("box", "")
    found = probabilities(model, tokenizer, [("the red box", "box"), ("the red", ""), ("box", "box")])
    np.testing.assert_allclose(found[0], found[1])
    assert np.isfinite(found).all()

    def score(questions):
        return probabilities(model, tokenizer, [("the red box", text) for _, text in questions])

    label = int(score([(0, "box")])[0].argmax())
    ((_, result),) = run([attack("box", label, [unicode(), spacing()], Limits())], score)
    assert result.status in ("robust", "fooled")
