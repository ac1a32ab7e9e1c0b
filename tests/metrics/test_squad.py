"""SQuAD's scores against cases worked out by hand, and against the whole public files."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infobert_fast.metrics.squad import exact_match, normalize_answer, original_id, squad_scores, token_f1


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),  # punctuation goes before articles: no lone "a" appears
        ("theatre", "theatre"),
        ("rock-n-roll", "rocknroll"),
        ("«Ça»", "«ça»"),  # only ASCII punctuation is taken off
        ("\u00a0x\n y ", "x y"),
        ("The", ""),
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos.", 1, 1),
        ("Broncos", "Denver Broncos", 0, 2 / 3),
        ("Denver Denver Broncos", "Denver Broncos", 0, 0.8),  # words are counted: 2 common of 3 and of 2
        ("gold", "blue", 0, 0),
        ("", "", 1, 1),
        ("", "blue", 0, 0),
        ("the", "", 1, 1),
    ],
)
def test_a_pair_of_answers(prediction, answer, em, f1):
    assert exact_match(prediction, answer) == em
    assert token_f1(prediction, answer) == pytest.approx(f1)
    assert token_f1(answer, prediction) == pytest.approx(f1)


@given(st.text(), st.text())
def test_f1_is_a_symmetric_share_and_one_where_the_match_is_exact(one, other):
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, other) == token_f1(other, one)
    assert token_f1(one, one) == exact_match(one, one) == 1
    if exact_match(one, other):
        assert token_f1(one, other) == 1


def test_the_best_of_the_right_answers_counts():
    scores = squad_scores({"q": ["October 1973", "1973"], "r": ["no"]}, {"q": "in 1973", "r": "No"})
    assert (scores.em, scores.count) == (50, 2)
    assert scores.f1 == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert scores.each_em.tolist() == [0, 1]
    assert scores.original_f1 is None


def test_questions_without_an_answer_want_none():
    answers = {"q": [], "r": [], "s": ["x"]}
    scores = squad_scores(answers, {"q": "", "r": "something", "s": ""})
    assert scores.each_f1.tolist() == scores.each_em.tolist() == [1, 0, 0]


def test_a_question_without_a_prediction_scores_nothing_and_is_counted(caplog):
    with caplog.at_level(logging.WARNING):
        scores = squad_scores({"q": ["x"], "r": []}, {"q": "x"})
    assert scores.each_f1.tolist() == [1, 0]
    assert "1 of 2 questions have no prediction and score 0: ['r']" in caplog.text


def test_no_questions():
    with pytest.raises(ValueError, match="`answers` is empty"):
        squad_scores({}, {})


def test_the_worst_variant_counts_the_original_among_them():
    answers = {"q": ["big blue box"], "q-one": ["big blue box"], "q-two-x": ["big blue box"], "r": ["y"], "s": ["z"]}
    answers["s-v"] = ["z"]
    predictions = {"q": "big blue box", "q-one": "blue box", "q-two-x": "box", "r": "y", "s": "wrong", "s-v": "z"}
    scores = squad_scores(answers, predictions)
    assert scores.ids == ("q", "r", "s")
    assert scores.each_f1.tolist() == pytest.approx([0.5, 1, 0])  # q: worst of 1, 0.8, 0.5; r: alone; s: the original
    assert scores.each_em.tolist() == [0, 1, 0]
    assert (scores.f1, scores.em, scores.count) == (pytest.approx(50), pytest.approx(100 / 3), 3)
    assert (scores.original_f1, scores.original_em) == (pytest.approx(200 / 3), pytest.approx(200 / 3))


def test_a_dash_alone_makes_no_variant():
    assert original_id("a-b", {"a-b", "a-c"}) == "a-b"
    assert original_id("a-b", {"a", "a-b"}) == "a"
    assert squad_scores({"a-b": ["x"], "a-c": ["x"]}, {"a-b": "x", "a-c": ""}).count == 2


@pytest.mark.parametrize(
    ("path", "questions", "originals"),
    [
        ("squad/dev-v1.1.rebuilt.json", 10_570, 10_570),
        ("adversarial_squad/sample1k-HCVerifyAll.json", 3_560, 1_000),  # AddSent
        ("adversarial_squad/sample1k-HCVerifySample.json", 1_787, 1_000),  # AddOneSent
    ],
)
def test_right_answers_score_a_hundred(real_data, path, questions, originals):
    with open(real_data(path), encoding="utf-8") as file:
        document = json.load(file)
    right = {
        question["id"]: [answer["text"] for answer in question["answers"]]
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    assert len(right) == questions
    scores = squad_scores(right, {key: texts[-1] for key, texts in right.items()})
    assert (scores.em, scores.f1, scores.count) == (100, 100, originals)
    # One wrong variant is enough.
    key = next(iter(right))
    worse = squad_scores(right, {**{k: texts[0] for k, texts in right.items()}, key: "?"})
    assert worse.f1 == pytest.approx(100 * (originals - 1) / originals)
