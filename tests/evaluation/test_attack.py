"""The attack on toy models whose answers are known, alone and side by side, and every limit."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from infobert_fast.cli import main
from infobert_fast.cli.attack import _tagger
from infobert_fast.evaluation import scoring
from infobert_fast.evaluation.attack import Compare, Limits, Outcome, Score, attack, run

# Two labels; a text's evidence for label 1 is the sum of its words' weights.
WEIGHTS = {
    "good": 2.0,
    "fine": 0.5,
    "decent": -0.3,
    "film": 0.4,
    "movie": 0.1,
    "flick": -1.0,
    "bad": -2.0,
    "awful": -0.1,
}
NEIGHBORS = {"good": ["fine", "decent"], "film": ["movie", "flick"], "the": ["a"]}


def probabilities(texts):
    evidence = np.array(
        [sum(WEIGHTS.get(word.lower().strip(".,!()…"), 0.0) for word in text.split()) for text in texts]
    )
    positive = 1 / (1 + np.exp(-evidence))
    return np.stack([1 - positive, positive], axis=1)


def score(questions):
    return probabilities([text for _, text in questions])


def alone(text, label, limits=None, neighbors=NEIGHBORS):
    ((number, outcome),) = run([attack(text, label, neighbors, limits or Limits())], score, concurrent=1)
    assert number == 0
    return outcome


def test_the_most_important_word_goes_first_and_the_others_follow():
    # "good" weighs most: "decent" leaves it least and is kept; then "flick" turns the sum.
    assert alone("The Good film.", 1) == Outcome("fooled", "The Decent flick.", 0, 1 + 2 + 2 + 2, 2, 3)


def test_one_word_that_suffices_is_not_followed_by_another():
    outcome = alone("good", 1)
    assert (outcome.status, outcome.text, outcome.queries, outcome.changed) == ("fooled", "decent", 4, 1)


def test_a_text_that_the_model_gets_wrong_is_left_alone():
    assert alone("bad film", 1) == Outcome("misclassified", "bad film", 0, 1, 0, 2)


def test_a_text_without_substitutes_holds():
    outcome = alone("bad , the plot", 0)
    assert (outcome.status, outcome.text, outcome.queries, outcome.changed) == ("robust", "bad , the plot", 1, 0)


def test_words_that_only_raise_the_labels_probability_are_not_kept():
    asked = []

    def recording(questions):
        asked.append([text for _, text in questions])
        return score(questions)

    neighbors = {"movie": ["film"], "good": ["fine"]}
    ((_, outcome),) = run([attack("good movie", 1, neighbors, Limits())], recording)
    assert outcome.status == "robust"
    assert asked == [["good movie"], ["movie", "good"], ["fine movie"], ["fine film"]]


def test_importance_counts_the_rise_of_another_label():
    """Deleting x loses label 0 less than deleting y does, but brings label 1 up; x is tried first."""
    table = {
        "x y": [0.5, 0.3, 0.2],
        "y": [0.4, 0.6, 0.0],
        "x": [0.35, 0.33, 0.32],
        "X y": [0.1, 0.9, 0.0],
    }
    ((_, outcome),) = run(
        [attack("x y", 0, {"x": ["X1"], "y": ["Y1"]}, Limits())],
        lambda q: np.array([table.get(t, [0, 1, 0]) for _, t in q]),
    )
    assert outcome.text == "X1 y"


def test_side_by_side_equals_one_by_one():
    texts = ["good film", "fine movie", "bad film", "a good flick", "good good good", "film film film good", "", "the"]
    labels = [1, 1, 1, 0, 1, 1, 0, 1]

    def outcomes(concurrent):
        attacks = [attack(text, label, NEIGHBORS, Limits()) for text, label in zip(texts, labels, strict=True)]
        return dict(run(attacks, score, concurrent=concurrent))

    single = outcomes(1)
    assert sorted(single) == list(range(len(texts)))
    assert {outcome.status for outcome in single.values()} == {"misclassified", "robust", "fooled"}
    for concurrent in (2, 3, 100):
        assert outcomes(concurrent) == single


def test_side_by_side_asks_in_full_batches():
    sizes = []

    def counting(questions):
        sizes.append(len(questions))
        return score(questions)

    assert len(dict(run([attack("good film", 1, NEIGHBORS, Limits()) for _ in range(50)], counting))) == 50
    assert sizes == [50, 100, 100, 100]


def test_the_query_budget_holds():
    for budget in range(1, 9):
        outcome = alone("The Good film.", 1, Limits(max_queries=budget))
        assert outcome.queries <= budget
        assert (outcome.status == "fooled") == (budget >= 6)


def test_candidates_are_limited():
    assert alone("good", 1, Limits(max_candidates=1)).status == "robust"


def test_similarity_filters_and_decides():
    likeness = {"fine": 0.9, "decent": 0.5, "awful": 0.7}
    compared = []

    def compare(pairs):
        compared.extend(pairs)
        return np.array([likeness[text] for _, text in pairs])

    neighbors = {"good": ["fine", "decent", "awful"]}

    def outcome(limits):
        ((_, result),) = run([attack("good", 1, neighbors, limits, similar=True)], score, compare)
        return result

    assert outcome(Limits()).text == "awful"  # of the two that fool, the one more alike
    assert outcome(Limits(min_similarity=0.8)).status == "robust"
    assert outcome(Limits(min_similarity=0.8)).queries == 3  # clean, deletion, "fine"
    assert set(compared) == {("good", text) for text in likeness}


def test_parts_of_speech_are_kept():
    kinds = {"good": "ADJ", "fine": "NOUN", "decent": "ADJ"}
    outcome = alone("good", 1, Limits(tags=lambda words: [kinds.get(word, "X") for word in words]))
    assert (outcome.text, outcome.queries) == ("decent", 3)


def test_spacing_case_and_punctuation_are_kept():
    outcome = alone("  GOOD,  well-made (film)…", 1, neighbors={"good": ["decent"], "film": ["flick"]})
    assert outcome.text == "DECENT,  well-made (flick)…"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_queries": 0}, "`max_queries` was 0"),
        ({"max_candidates": 0}, "`max_candidates`"),
        ({"min_similarity": 2}, "cosine"),
    ],
)
def test_limits_that_allow_nothing_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_questions_are_told_apart():
    ask = attack("good", 1, NEIGHBORS, Limits(), similar=True)
    assert next(ask) == Score(["good"])
    assert ask.send(probabilities(["good"])) == Score([""])
    assert ask.send(probabilities([""])) == Compare("good", ["fine", "decent"])


def test_answers_that_do_not_match_their_questions_are_refused():
    attacks = [attack("good film", 1, NEIGHBORS, Limits()) for _ in range(2)]
    with pytest.raises(ValueError, match="2 texts were asked about, and 1 answers came"):
        list(run(attacks, lambda questions: score(questions)[:1]))
    with pytest.raises(ValueError, match="`compare` was None, and an attack is `similar`"):
        list(run([attack("good", 1, NEIGHBORS, Limits(), similar=True)], score))


@pytest.fixture
def neighbors(nli_folder, tmp_path):
    """Every word of the corpus may become each of three others of it."""
    words = sorted(
        {
            word
            for line in (nli_folder / "test.jsonl").read_text().splitlines()
            for word in json.loads(line)["hypothesis"].lower().split()
        }
    )
    path = tmp_path / "neighbors.json"
    path.write_text(json.dumps(dict.fromkeys(words, words[:3])))
    return path


def test_the_command(nli_folder, tmp_path, neighbors, capsys):
    out = tmp_path / "out"
    command = ["attack", str(nli_folder / "model"), "--data", f"t={nli_folder / 'test.jsonl'}", "--limit", "12"]
    command += ["--neighbors", str(neighbors), "--output", str(out), "--similarity_model", str(nli_folder / "model")]
    assert main([*command, "--min_similarity", "-1"]) == 0
    assert "under attack" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())["t"]
    lines = [json.loads(line) for line in (out / "t.jsonl").read_text().splitlines()]
    assert report["examples"] == 12
    assert round((report["clean"] - report["under_attack"]) * 12) == len(lines)
    rows = [json.loads(line) for line in (nli_folder / "test.jsonl").read_text().splitlines()]
    for line in lines:
        assert {
            "premise": line["orig_preimise"],
            "hypothesis": line["orig_hypothesis"],
            "label": line["true_label"],
        } in [{key: row[key] for key in ("premise", "hypothesis", "label")} for row in rows]
        assert line["adv_hypothesis"] != line["orig_hypothesis"]
        assert line["adv_label"] != line["true_label"]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_models_run_in_the_precision_asked_for(bf16, nli_folder, tmp_path, neighbors, monkeypatch):
    seen, exact = [], scoring.probabilities

    def spy(model, tokenizer, pairs, **sizes):
        seen.append(torch.is_autocast_enabled("cpu"))
        return exact(model, tokenizer, pairs, **sizes)

    monkeypatch.setattr("infobert_fast.cli.attack.probabilities", spy)
    command = ["attack", str(nli_folder / "model"), "--data", f"t={nli_folder / 'test.jsonl'}", "--limit", "4"]
    assert main([*command, "--neighbors", str(neighbors), *["--bf16"] * bf16]) == 0
    assert set(seen) == {bf16}


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "must hold one mapping"), ("{", "not UTF-8 JSON"), ('{"a": "b"}', "must hold one mapping")],
)
def test_bad_neighbour_files(content, message, nli_folder, tmp_path, capsys):
    path = tmp_path / "n.json"
    path.write_text(content)
    command = ["attack", str(nli_folder / "model"), "--data", str(nli_folder / "test.jsonl"), "--neighbors", str(path)]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_similarity_without_its_model_is_refused(nli_folder, neighbors, capsys):
    command = ["attack", str(nli_folder / "model"), "--data", str(nli_folder / "test.jsonl"), "--neighbors"]
    assert main([*command, str(neighbors), "--min_similarity", "0.9"]) == 2
    assert "`min_similarity` was 0.9; name who judges it: --similarity_model" in capsys.readouterr().err


def test_the_tagger_is_nltks(monkeypatch):
    nltk = types.ModuleType("nltk")
    nltk.pos_tag = lambda words, tagset: [(word, f"{tagset}:{len(word)}") for word in words]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    assert _tagger()(["a", "word"]) == ["universal:1", "universal:4"]
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ValueError, match="needs nltk and its tagger"):
        _tagger()
