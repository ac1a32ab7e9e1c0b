"""A model's card: what the hub reads of it, what it keeps, and what a run and an evaluation write into it."""

import json

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from infobert_fast import cli
from infobert_fast.card import scored_card, trained_card

OWN = """---
license: apache-2.0
language: en
tags: [mine]
model-index:
- name: my model
  results:
  - task: {type: text-classification}
    dataset: {type: other, name: other}
    metrics:
    - {type: accuracy, value: 0.5}
---

# My model

I wrote this myself.
"""
RESULTS = {
    "mnli-m": {"examples": 9815, "measure": "accuracy", "accuracy": 0.9, "brier": 0.15, "low": 0.89, "high": 0.91},
    "anli-r1": {"examples": 1000, "measure": "accuracy", "accuracy": 0.7, "clean": "mnli-m", "drop": 0.2},
}


def trained(folder, **changes):
    given = {
        "task": "nli",
        "base_model": "FacebookAI/roberta-large",
        "data": {"trained on": ["snli:train"], "evaluated on": []},
        "settings": {"objective": "infobert", "adv_steps": 3},
        "metrics": {"eval_accuracy": 0.9},
    }
    trained_card(folder, **{**given, **changes})


def load(folder):
    """As the hub's library reads it; its metadata goes there and back."""
    card = ModelCard.load(folder / "README.md")
    index = card.data.to_dict().get("model-index")
    if index:
        assert model_index_to_eval_results(index)[1] == card.data.eval_results
    assert str(ModelCard(str(card))) == str(card)
    return card


def test_a_new_card(tmp_path):
    trained(tmp_path)
    scored_card(tmp_path, task="nli", results=RESULTS)
    card = load(tmp_path)
    assert card.data.base_model == "FacebookAI/roberta-large"
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert card.data.tags == ["infobert-fast", "adversarial-robustness"]
    assert card.data.model_name == tmp_path.name
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {("mnli-m", "accuracy"): 0.9, ("mnli-m", "brier"): 0.15, ("anli-r1", "accuracy"): 0.7}
    assert card.data.eval_results[0].metric_args == {"examples": 9815}
    for line in (
        f"# {tmp_path.name}",
        "## Training",
        "* trained on: `snli:train`",
        "| adv_steps | 3 |",
        "| eval_accuracy | 0.9 |",
        "## Evaluation",
        "| set | examples | accuracy | brier | drop |",
        "| mnli-m | 9815 | 90.0 | 15.0 |  |",
        "| anli-r1 | 1000 | 70.0 |  | 20.0 from mnli-m |",
    ):
        assert line in card.text.splitlines()
    assert "evaluated on" not in card.text


def test_a_card_that_is_there_is_updated_and_keeps_what_it_holds(tmp_path):
    (tmp_path / "README.md").write_text(OWN)
    for accuracy in (0.6, 0.8):
        trained(tmp_path, settings={"seed": accuracy})
        scored_card(tmp_path, task="nli", results={"a": {"examples": 3, "accuracy": accuracy}})
    card = load(tmp_path)
    assert (card.data.license, card.data.language, card.data.model_name) == ("apache-2.0", "en", "my model")
    assert card.data.tags == ["mine", "infobert-fast", "adversarial-robustness"]
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {("other", "accuracy"): 0.5, ("a", "accuracy"): 0.8}
    assert card.text.startswith("\n# My model\n\nI wrote this myself.\n")
    assert card.text.count("## Training") == card.text.count("## Evaluation") == 1
    assert "| seed | 0.8 |" in card.text
    assert "| seed | 0.6 |" not in card.text
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_section_that_was_moved_stays_where_it_is(tmp_path):
    scored_card(tmp_path, task="nli", results=RESULTS)
    path = tmp_path / "README.md"
    path.write_text(path.read_text() + "\n## Last\n")
    trained(tmp_path)
    scored_card(tmp_path, task="nli", results=RESULTS)
    text = path.read_text()
    assert text.index("## Evaluation") < text.index("## Last") < text.index("## Training")


def test_a_model_of_a_folder_names_no_base_on_the_hub(tmp_path):
    trained(tmp_path, base_model=str(tmp_path))
    assert load(tmp_path).data.base_model is None


@pytest.mark.parametrize("text", ["---\n- a\n---\n", "---\na: [\n---\n", "---\nmodel-index: [{x: 1}]\n---\n"])
def test_a_card_that_cannot_be_read_is_left(tmp_path, caplog, text):
    (tmp_path / "README.md").write_text(text)
    trained(tmp_path)
    scored_card(tmp_path, task="nli", results=RESULTS)
    assert (tmp_path / "README.md").read_text() == text
    assert "README.md is left as it is, for its metadata cannot be read" in caplog.text


def test_an_evaluation_writes_its_card(nli_folder, tmp_path):
    import shutil

    shutil.copytree(nli_folder / "model", tmp_path / "m")
    (tmp_path / "m/README.md").write_text(OWN)
    command = ["evaluate", str(tmp_path / "m"), "--suite", f"t={nli_folder / 'test.jsonl'}", "--limit", "9"]
    assert cli.main([*command, "--no_card"]) == 0
    assert (tmp_path / "m/README.md").read_text() == OWN
    assert cli.main([*command, "--output", str(tmp_path / "r.json")]) == 0
    card = load(tmp_path / "m")
    (row,) = json.loads((tmp_path / "r.json").read_text()).values()
    found = {r.metric_type: r.metric_value for r in card.data.eval_results if r.dataset_name == "t"}
    assert found == {name: row[name] for name in ("accuracy", "calibration_error", "brier")}
    assert "I wrote this myself." in card.text
