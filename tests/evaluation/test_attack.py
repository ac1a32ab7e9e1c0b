"""The attack on toy models whose answers are known, alone and side by side, and every limit."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infobert_fast.cli import main
from infobert_fast.cli.attack import _tagger
from infobert_fast.data.corpora import load, load_nli
from infobert_fast.data.labels import LABELS
from infobert_fast.data.tasks import TASKS
from infobert_fast.evaluation import scoring
from infobert_fast.evaluation.attack import Compare, Limits, Outcome, Score, attack, run
from infobert_fast.evaluation.recipes import RECIPES, characters, substitutions

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
    "worst": -5.0,
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
    ((number, outcome),) = run(
        [attack(text, label, [substitutions(neighbors)], limits or Limits())], score, concurrent=1
    )
    assert number == 0
    return outcome


def test_the_most_important_word_goes_first_and_the_others_follow():
    # "good" weighs most: "decent" leaves it least and is kept; then "flick" turns the sum.
    assert alone("The Good film.", 1) == Outcome("fooled", "The Decent flick.", 0, 1 + 2 + 2 + 2, 2, 3)


def test_the_order_is_that_of_importance_not_of_the_text():
    assert alone("film good", 1, Limits(max_changed=0.5), {"film": ["movie"], "good": ["bad"]}).text == "film bad"


def test_a_change_without_a_gain_is_not_kept():
    """The word without weight is tried first; nothing is won by it, and it stays as it was."""
    neighbors = {"plot": ["story"], "bad": ["worst"]}
    assert alone("good good bad plot", 1, neighbors=neighbors).text == "good good worst plot"


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
    ((_, outcome),) = run([attack("good movie", 1, [substitutions(neighbors)], Limits())], recording)
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
        [attack("x y", 0, [substitutions({"x": ["X1"], "y": ["Y1"]})], Limits())],
        lambda q: np.array([table.get(t, [0, 1, 0]) for _, t in q]),
    )
    assert outcome.text == "X1 y"


def test_side_by_side_equals_one_by_one():
    texts = ["good film", "fine movie", "bad film", "a good flick", "good good good", "film film film good", "", "the"]
    labels = [1, 1, 1, 0, 1, 1, 0, 1]

    def outcomes(concurrent):
        attacks = [
            attack(text, label, [substitutions(NEIGHBORS)], Limits()) for text, label in zip(texts, labels, strict=True)
        ]
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

    assert (
        len(dict(run([attack("good film", 1, [substitutions(NEIGHBORS)], Limits()) for _ in range(50)], counting)))
        == 50
    )
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
        ((_, result),) = run([attack("good", 1, [substitutions(neighbors)], limits, similar=True)], score, compare)
        return result

    assert outcome(Limits()).text == "awful"  # of the two that fool, the one more alike
    assert outcome(Limits(min_similarity=0.8)).status == "robust"
    assert outcome(Limits(min_similarity=0.8)).queries == 3  # clean, deletion, "fine"
    assert set(compared) == {("good", text) for text in likeness}


def test_the_share_of_changed_words_is_limited():
    assert alone("The Good film.", 1).changed == 2
    assert alone("The Good film.", 1, Limits(max_changed=0.4)).status == "robust"  # one word of three
    assert alone("The Good film.", 1, Limits(max_changed=2 / 3)).changed == 2
    assert alone("good", 1, Limits(max_changed=0.01)).status == "fooled"  # one word at least


def test_recipes_are_tried_together():
    """Neither the substitutes nor the slips of either word alone turn the answer; a slip of each does."""
    text, harmless = "good fine", {"good": ["fine"]}
    assert alone(text, 1, neighbors=harmless).status == "robust"
    both = [substitutions(harmless), characters()]
    ((_, outcome),) = run([attack(text, 1, both, Limits())], lambda q: probabilities([f"{t} flick" for _, t in q]))
    assert (outcome.status, outcome.changed) == ("fooled", 1)
    assert outcome.text.split()[1] == "fine"


def test_parts_of_speech_are_kept():
    kinds = {"good": "ADJ", "fine": "NOUN", "decent": "ADJ"}
    recipe = substitutions(NEIGHBORS, lambda words: [kinds.get(word, "X") for word in words])
    ((_, outcome),) = run([attack("good", 1, [recipe], Limits())], score)
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
        ({"max_changed": 0.0}, "`max_changed` was 0.0; a share of the words lies in"),
        ({"max_changed": 1.5}, "`max_changed` was 1.5"),
    ],
)
def test_limits_that_allow_nothing_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_questions_are_told_apart():
    ask = attack("good", 1, [substitutions(NEIGHBORS)], Limits(), similar=True)
    assert next(ask) == Score(["good"])
    assert ask.send(probabilities(["good"])) == Score([""])
    assert ask.send(probabilities([""])) == Compare("good", ["fine", "decent"])


def test_answers_that_do_not_match_their_questions_are_refused():
    attacks = [attack("good film", 1, [substitutions(NEIGHBORS)], Limits()) for _ in range(2)]
    with pytest.raises(ValueError, match="2 texts were asked about, and 1 answers came"):
        list(run(attacks, lambda questions: score(questions)[:1]))
    with pytest.raises(ValueError, match="`compare` was None, and an attack is `similar`"):
        list(run([attack("good", 1, [substitutions(NEIGHBORS)], Limits(), similar=True)], score))


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


def attacked(nli_folder, tmp_path, *options, model=None):
    out = tmp_path / "out"
    command = ["attack", str(model or nli_folder / "model"), "--data", f"t={nli_folder / 'test.jsonl'}"]
    assert main([*command, "--limit", "12", "--output", str(out), *options]) == 0
    return (out / "t.jsonl").read_text(), json.loads((out / "report.json").read_text())["t"]


@pytest.mark.parametrize("recipe", [*RECIPES, ("characters", "unicode", "spacing")])
def test_the_recipes_by_the_command(nli_folder, tmp_path, recipe):
    names = [recipe] if isinstance(recipe, str) else recipe
    options = ["--recipe", *names, "--max_candidates", "8", "--max_changed", "0.5", "--max_queries", "60"]
    lines, report = attacked(nli_folder, tmp_path, *options)
    assert report["under_attack"] < report["clean"]
    assert len(lines.splitlines()) == round((report["clean"] - report["under_attack"]) * 12)
    assert attacked(nli_folder, tmp_path, *options, "--concurrent", "1", "--seed", "0") == (lines, report)
    for line in map(json.loads, lines.splitlines()):
        words = len(line["orig_hypothesis"].split())
        assert line["adv_hypothesis"] != line["orig_hypothesis"]
        assert 1 <= line["changed"] <= max(1, words // 2)
        assert line["queries"] <= 60


def test_the_seed_draws_other_changes(nli_folder, tmp_path):
    options = ["--recipe", "characters", "--max_candidates", "2"]
    assert attacked(nli_folder, tmp_path, *options) != attacked(nli_folder, tmp_path, *options, "--seed", "1")


def test_what_an_attack_wrote_is_trained_on_as_it_is(nli_folder, tmp_path):
    """Of pairs, whichever text was changed, and of single texts: the changed texts with the right labels."""
    for field in ("hypothesis", "premise"):
        lines, _ = attacked(nli_folder, tmp_path, "--recipe", "characters", "--field", field)
        loaded = load_nli(str(tmp_path / "out/t.jsonl"))
        written = [json.loads(line) for line in lines.splitlines()]
        assert loaded[field][:] == [line[f"adv_{field}"] for line in written]
        assert loaded["label"][:] == [LABELS.index(line["true_label"]) for line in written]
    command = [
        "train",
        "--model_name_or_path",
        str(nli_folder / "model"),
        "--train_data",
        str(tmp_path / "out/t.jsonl"),
    ]
    command += ["--output_dir", str(tmp_path / "m"), "--use_cpu", "True", "--max_steps", "1", "--save_strategy", "no"]
    assert main([*command, "--report_to", "none", "--per_device_train_batch_size", "2"]) == 0


def test_single_texts_and_other_tasks(nli_folder, tmp_path, capsys):
    """The task follows from the model's labels; what is written has the columns of that task."""
    model = AutoModelForSequenceClassification.from_pretrained(nli_folder / "model")
    model.config.id2label = {0: "unsafe", 1: "safe"}
    model.config.num_labels = 2
    with torch.no_grad():
        model.classifier.out_proj = torch.nn.Linear(16, 2)
        torch.nn.init.normal_(model.classifier.out_proj.weight, std=3)
    model.save_pretrained(tmp_path / "guard")
    AutoTokenizer.from_pretrained(nli_folder / "model").save_pretrained(tmp_path / "guard")
    corpus = [json.loads(line)["premise"] for line in (nli_folder / "test.jsonl").read_text().splitlines()]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": ("safe", "unsafe")[i % 2]}) + "\n" for i, text in enumerate(corpus))
    )
    command = [
        "attack",
        str(tmp_path / "guard"),
        "--data",
        f"t={tmp_path / 't.jsonl'}",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--recipe", "unicode", "spacing"]) == 0
    written = [json.loads(line) for line in (tmp_path / "o/t.jsonl").read_text().splitlines()]
    assert written
    assert all(line["orig_text"] in corpus and line["text"] != line["orig_text"] for line in written)
    loaded = load(str(tmp_path / "o/t.jsonl"), TASKS["safety"])
    assert loaded["text"][:] == [line["text"] for line in written]
    assert [TASKS["safety"].labels[i] for i in loaded["label"]] == [line["label"] for line in written]
    assert main([*command, "--recipe", "unicode", "--field", "premise"]) == 2
    assert "`field` was 'premise'; it must be one of 'text'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "`recipe` holds words, and `neighbors` is unset: give a file of them"),
        (["--recipe", "unicode", "--neighbors", "n.json"], "`neighbors` is for the recipe words, and `recipe` was uni"),
        (["--recipe", "spacing", "--keep_part_of_speech"], "`keep_part_of_speech` is for the recipe words"),
        (["--neighbors", "n.json", "--seed", "3"], "`seed` was 3; the recipe words draws nothing at random"),
    ],
)
def test_options_without_an_effect_are_refused(nli_folder, capsys, options, message):
    assert main(["attack", str(nli_folder / "model"), "--data", str(nli_folder / "test.jsonl"), *options]) == 2
    assert message in capsys.readouterr().err


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
