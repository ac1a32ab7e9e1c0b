import string
from dataclasses import fields

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infobert_fast.data.corpora import Source
from infobert_fast.data.source import draw

WORD = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8)
SPLIT = st.from_regex(r"[a-z_0-9]{1,8}(\[:[0-9]{1,3}%?\])?", fullmatch=True)
FILE = st.builds(
    lambda parts, ending: "/".join(parts) + ending,
    st.lists(WORD, min_size=1, max_size=3),
    st.sampled_from([a + b for a in (".jsonl", ".json", ".csv", ".tsv") for b in ("", ".gz")]),
)
HUB = st.lists(st.builds("{}{}".format, WORD, st.sampled_from(["", ".v1"])), min_size=1, max_size=2).map("/".join)


@given(st.none() | WORD, HUB, st.none() | SPLIT)
def test_parse_gives_back_the_parts_of_a_hub_source(name, path, split):
    text = (f"{name}=" if name else "") + path + (f":{split}" if split else "")
    assert Source.parse(text) == Source(path, name=name, split=split)


@given(st.none() | WORD, FILE)
def test_parse_gives_back_the_parts_of_a_file(name, path):
    assert Source.parse((f"{name}=" if name else "") + path) == Source(path, name=name)


@given(st.none() | WORD, FILE.filter(lambda path: path.endswith((".json", ".json.gz"))), WORD)
def test_parse_gives_back_the_field_of_a_document(name, path, field):
    assert Source.parse((f"{name}=" if name else "") + f"{path}#{field}") == Source(path, name=name, field=field)


@given(st.text())
def test_parse_answers_any_text_with_a_source_or_a_value_error(text):
    try:
        assert text.strip().endswith(Source.parse(text).split or "")
    except ValueError as error:
        assert "path" in str(error)  # noqa: PT017 - most texts raise nothing, so `raises` does not fit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("snli:test", Source("snli", split="test")),
        ("snli:train[:10%]", Source("snli", split="train[:10%]")),
        ("facebook/anli:train_r1", Source("facebook/anli", split="train_r1")),
        ("data/dev.jsonl", Source("data/dev.jsonl")),
        ("adv=advglue/dev.json#mnli", Source("advglue/dev.json", name="adv", field="mnli")),
        ("./lr=1/dev.jsonl", Source("./lr=1/dev.jsonl")),
        ("runs/lr=1/dev.jsonl", Source("runs/lr=1/dev.jsonl")),
        ("a:b/dev.jsonl", Source("a:b/dev.jsonl")),
        ("a:b.jsonl", Source("a:b.jsonl")),
        ("nr#1/dev.json", Source("nr#1/dev.json")),
        ("nr#1/dev.json#mnli", Source("nr#1/dev.json", field="mnli")),
    ],
)
def test_parse_of_texts_that_could_be_misread(text, expected):
    assert Source.parse(text) == expected


def test_parse_takes_mappings_and_sources():
    given_ = {"path": "fever.jsonl", "premise": "claim", "labels": {"SUPPORTS": "entailment"}, "limit": 5}
    source = Source.parse(given_)
    assert (source.path, source.premise, source.limit) == ("fever.jsonl", "claim", 5)
    assert Source.parse(source) is source


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/anli/test_r1.jsonl.gz", "anli/test_r1"),
        ("dev.csv", "dev"),
        ("x/advglue/dev.json#mnli", "advglue/dev#mnli"),
        ("r1=data/anli/test_r1.jsonl", "r1"),
        ("facebook/anli:test_r1", "facebook/anli:test_r1"),
        ({"path": "glue", "config": "mnli", "split": "validation_matched"}, "glue/mnli:validation_matched"),
        ("snli", "snli"),
    ],
)
def test_display_name(source, name):
    assert Source.parse(source).display_name == name


def test_unknown_keys_are_errors_that_list_the_allowed_ones():
    with pytest.raises(ValueError, match="'snli' has unknown keys \\['spilt'\\]") as caught:
        Source.parse({"path": "snli", "spilt": "test"})
    assert all(item.name in str(caught.value) for item in fields(Source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"split": "test"}, "a mapping with the key path"),
        (7, "a mapping with the key path"),
        ("", "is not \\[name=\\]path"),
        ("dev.jsonl#mnli", "#field follows a .json document"),
        ("snli#mnli", "#field follows a .json document"),
        ({"path": ""}, "path must be a file or the name of a dataset, not ''"),
        ({"path": "snli", "limit": 0}, "limit must be a whole number of at least 1, not 0"),
        ({"path": "snli", "limit": "9"}, "limit must be a whole number of at least 1, not '9'"),
        ({"path": "snli", "repeat": 0}, "repeat must be a whole number of at least 1, not 0"),
        ({"path": "dev.jsonl", "field": "mnli"}, "field='mnli' needs a .json document, but path is 'dev.jsonl'"),
        ("dev.jsonl:test", "split='test' is for hub datasets, but path is the file 'dev.jsonl'"),
        ({"path": "dev.jsonl", "config": "x"}, "config='x' is for hub datasets"),
        ({"path": "snli", "labels": "enc"}, "labels must be a mapping or a sequence, not 'enc'"),
        ({"path": "snli", "fever_order": "both"}, "`fever_order` was 'both'; it must be one of 'reference', 'anli'"),
    ],
)
def test_a_meaningless_source_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        Source.parse(source)


def test_a_draw_is_the_same_in_every_call_and_whole_in_groups():
    rows = datasets.Dataset.from_dict({"n": list(range(100))})
    drawn = draw(rows, 10)["n"]
    assert list(drawn) == sorted(set(drawn))
    assert list(drawn) == list(draw(rows, 10)["n"]) != list(range(10))
    assert set(drawn) < set(draw(rows, 11)["n"])
    assert list(draw(rows, 1_000)["n"]) == list(range(100))
    groups = [str(i // 4) for i in range(100)]
    assert len({groups[n] for n in draw(rows, 3, groups)["n"]}) == 3
    assert len(draw(rows, 3, groups)) == 12
