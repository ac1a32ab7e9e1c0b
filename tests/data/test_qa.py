"""SQuAD's files, the windows cut from them, and the answers read back from logits."""

import copy
import gzip
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from infobert_fast.data.answers import AnswerReader
from infobert_fast.data.qa import load_questions, windows

CONTEXT = "The red box holds a cat. The blue box holds a dog and a very old turtle."
DOCUMENT = {
    "version": "2.0",
    "data": [
        {
            "title": "boxes",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "one",
                            "question": "What does the red box hold?",
                            "answers": [{"text": "a cat", "answer_start": 18}, {"text": "cat", "answer_start": 20}],
                        },
                        {"id": "two", "question": "Who holds it?", "answers": [], "is_impossible": True},
                        {
                            "id": "three",
                            "question": " Which is old? ",
                            "answers": [{"text": "turtle", "answer_start": CONTEXT.index("turtle")}],
                        },
                    ],
                }
            ],
        }
    ],
}


@pytest.fixture
def squad(tmp_path):
    """Write a document, changed or not, and return its path."""

    def write(change=lambda document: None, name="dev.json"):
        document = copy.deepcopy(DOCUMENT)
        change(document)
        path = tmp_path / name
        with (gzip.open if name.endswith(".gz") else open)(path, "wt") as file:
            json.dump(document, file)
        return str(path)

    return write


def question(document, number=0):
    return document["data"][0]["paragraphs"][0]["qas"][number]


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_squads_json(squad, name):
    loaded = load_questions(squad(name=name))
    assert loaded["id"][:] == ["one", "two", "three"]
    assert loaded[0]["answers"] == {"text": ["a cat", "cat"], "answer_start": [18, 20]}
    assert loaded[1]["answers"] == {"text": [], "answer_start": []}
    assert {row["context"] for row in loaded} == {CONTEXT}


def test_lines_and_the_hub_hold_the_same_questions(squad, jsonl, tmp_path):
    loaded = load_questions(squad())
    assert load_questions(jsonl(*loaded)).to_list() == loaded.to_list()
    (tmp_path / "folder").mkdir()
    loaded.to_parquet(tmp_path / "folder" / "train.parquet")  # datasets loads a folder as it does a dataset of the hub
    assert load_questions(f"{tmp_path / 'folder'}:train").to_list() == loaded.to_list()
    assert load_questions({"path": squad(), "limit": 2})["id"][:] == ["one", "two"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("data"), r"the document has no field 'data'; it has \['version'\]: SQuAD's JSON is needed"),
        (lambda d: d["data"][0].pop("paragraphs"), r"data\[0\] has no field 'paragraphs'; it has \['title'\]"),
        (lambda d: question(d, 2).pop("answers"), r"data\[0\].paragraphs\[0\].qas\[2\] has no field 'answers'"),
        (lambda d: question(d).update(answers={}), r"qas\[0\].answers is a dict; it must be a list"),
        (lambda d: question(d).update(id=7), r"qas\[0\].id is a int; it must be a str"),
        (lambda d: question(d)["answers"][1].pop("answer_start"), r"qas\[0\].answers has no field 'answer_start'"),
        (
            lambda d: question(d)["answers"][0].update(answer_start=17),
            r"qas\[0\] \(id 'one'\) has the answer 'a cat' at answer_start 17, where its context reads ' a ca'",
        ),
        (lambda d: question(d, 1).update(id="one"), r"qas\[1\] has the id 'one' a second time"),
        (lambda d: d.update(data=[]), "is empty: it holds no question"),
    ],
)
def test_a_wrong_document(squad, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_questions(squad(change))
    assert "dev.json" in str(error.value)


def test_a_broken_document_and_a_missing_one(tmp_path, squad):
    path = squad()
    (tmp_path / "dev.json").write_text(json.dumps(DOCUMENT)[:-30])
    with pytest.raises(ValueError, match=r"dev.json\): line 1, column \d+ is no JSON"):
        load_questions(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_questions(str(tmp_path / "absent.json"))


def covered(rows):
    """The characters of the paragraph that a question's windows hold, white space aside."""
    spans = {(start, end) for row in rows for start, end in zip(row["starts"], row["ends"], strict=True) if start >= 0}
    return "".join(CONTEXT[start:end] for start, end in sorted(spans))


@pytest.mark.parametrize(("max_length", "stride"), [(60, 8), (22, 6)])
def test_windows_cover_the_paragraph_and_mark_the_answer(squad, squad_tokenizer, max_length, stride):
    questions = load_questions(squad())
    cut = windows(questions, squad_tokenizer, max_length, stride)
    assert set(cut["example"]) == {0, 1, 2}
    for number in range(3):
        rows = [row for row in cut if row["example"] == number]
        assert (len(rows) > 1) == (max_length == 22)
        assert covered(rows) == CONTEXT.replace(" ", "")
        answers = questions[number]["answers"]["text"]
        marked = 0
        for row in rows:
            assert row["length"] == len(row["input_ids"]) == len(row["starts"]) == len(row["ends"]) <= max_length
            first, last = row["start_positions"], row["end_positions"]
            whole = CONTEXT[row["starts"][first] : row["ends"][last]] if first else ""
            assert whole in ("", *answers[:1])
            marked += bool(whole)
        assert (marked > 0) == bool(answers)


def test_a_question_is_cut_and_a_paragraph_never_lost(squad, squad_tokenizer):
    path = squad(lambda d: question(d).update(question="box " * 500))
    cut = windows(load_questions(path), squad_tokenizer, 200, 16)
    first = next(iter(cut))
    assert first["input_ids"].count(squad_tokenizer.convert_tokens_to_ids("box")) == 64 + CONTEXT.count("box")
    assert first["length"] <= 200
    assert max(first["ends"]) > 0


def test_lengths_without_room_are_refused(squad, squad_tokenizer):
    questions = load_questions(squad())
    with pytest.raises(ValueError, match=r"max_length is 20 and doc_stride 10: .*lower doc_stride or raise max_length"):
        windows(questions, squad_tokenizer, 20, 10)


def logits_for(cut, wanted, height=5.0):
    """Logits whose best span is ``wanted[example]``: first and last character, or None for the first token."""
    starts, ends = [], []
    for row in cut:
        start, end = np.zeros(row["length"]), np.zeros(row["length"])
        span = wanted[row["example"]]
        if span is None:
            start[0] = end[0] = height
        elif span[0] in row["starts"] and span[1] in row["ends"]:
            start[row["starts"].index(span[0])] = end[row["ends"].index(span[1])] = height
        starts.append(start)
        ends.append(end)
    return starts, ends


def test_answers_are_read_from_logits(squad, squad_tokenizer):
    questions = load_questions(squad())
    cut = windows(questions, squad_tokenizer, 22, 6)
    at = CONTEXT.index("a very old turtle")
    start, end = logits_for(cut, {0: (20, 23), 1: None, 2: (at, at + 17)})
    answers = AnswerReader(n_best=5).read(questions, cut, start, end)
    assert answers.predictions["one"] == "cat"
    assert answers.predictions["three"] == "a very old turtle"
    assert answers.predictions["two"] != ""  # never empty without a threshold
    assert answers.null_odds["one"] == -10
    assert answers.null_odds["two"] == 10
    assert answers.n_best["one"][0].score == 10
    assert len(answers.n_best["one"]) == 5
    assert sum(span.probability for span in answers.n_best["one"]) == pytest.approx(1)
    with_threshold = AnswerReader(null_threshold=0.0).read(questions, cut, start, end)
    assert with_threshold.predictions == {"one": "cat", "two": "", "three": "a very old turtle"}
    assert AnswerReader(null_threshold=10.0).read(questions, cut, start, end).predictions["two"] != ""
    short = AnswerReader(max_answer_length=2).read(questions, cut, start, end)
    assert len(short.predictions["three"].split()) <= 2


def test_the_null_score_is_the_least_over_a_questions_windows(squad, squad_tokenizer):
    questions = load_questions({"path": squad(), "limit": 1})
    cut = windows(questions, squad_tokenizer, 22, 6)
    count = len(cut)
    assert count > 2
    zeros = [np.zeros(row["length"]) for row in cut]
    for least in range(count):
        start = [row.copy() for row in zeros]
        for number, row in enumerate(start):
            row[0] = -7 if number == least else 3
        answers = AnswerReader().read(questions, cut, start, zeros)
        assert answers.null_odds["one"] == -7 - answers.n_best["one"][0].score


def test_an_answer_may_be_as_long_as_allowed(squad, squad_tokenizer):
    questions = load_questions(squad())
    cut = windows(questions, squad_tokenizer, 60, 8)
    at = CONTEXT.index("a very old turtle")
    start, end = logits_for(cut, {0: (20, 23), 1: None, 2: (at, at + 17)})
    for longest, whole in ((4, True), (3, False)):
        found = AnswerReader(max_answer_length=longest).read(questions, cut, start, end).predictions["three"]
        assert (found == "a very old turtle") == whole


def test_of_a_text_that_stands_twice_the_better_score_counts(squad, squad_tokenizer):
    questions = load_questions({"path": squad(), "limit": 1})
    cut = windows(questions, squad_tokenizer, 60, 8)
    (row,) = cut
    start, end = np.zeros(row["length"]), np.zeros(row["length"])
    for at, height in ((CONTEXT.index("box"), 4), (CONTEXT.rindex("box"), 3)):
        start[row["starts"].index(at)] = end[row["ends"].index(at + 3)] = height
    best = AnswerReader().read(questions, cut, [start], [end]).n_best["one"]
    assert [(span.text, span.score) for span in best if span.text == "box"] == [("box", 8.0)]


def test_no_end_before_its_start_and_nothing_outside_the_paragraph(squad, squad_tokenizer):
    questions = load_questions({"path": squad(), "limit": 1})
    cut = windows(questions, squad_tokenizer, 60, 8)
    row = cut[0]
    start, end = np.zeros(row["length"]), np.zeros(row["length"])
    start[row["starts"].index(CONTEXT.index("dog"))] = 9
    end[row["ends"].index(CONTEXT.index("cat") + 3)] = 9  # before that start
    start[1] = end[1] = 50  # a token of the question
    answers = AnswerReader().read(questions, cut, [start], [end])
    text = answers.predictions["one"]
    assert text in CONTEXT
    assert answers.n_best["one"][0].score == 9  # one of the two peaks, never both
    # Padding behind a window changes nothing.
    padded = AnswerReader().read(questions, cut, np.pad(start, (0, 7))[None], np.pad(end, (0, 7))[None])
    assert padded == answers


def test_rows_that_are_not_the_windows_are_refused(squad, squad_tokenizer):
    questions = load_questions(squad())
    cut = windows(questions, squad_tokenizer, 60, 8)
    with pytest.raises(ValueError, match=r"there are 3 windows, 1 rows of `start_logits` and 1 of `end_logits`"):
        AnswerReader().read(questions, cut, [np.zeros(3)], [np.zeros(3)])


# ---- the answer that is trained


def one_question(jsonl, text, start, context="The quick brown fox jumps", **more):
    texts, starts = ([text], [start]) if isinstance(text, str) else (text, start)
    row = {"id": "q", "question": "who", "context": context, "answers": {"text": texts, "answer_start": starts}}
    return jsonl({**row, **more})


def trained(cut, context):
    return [context[row["starts"][row["start_positions"]] : row["ends"][row["end_positions"]]] for row in cut]


@pytest.mark.parametrize(
    ("text", "start", "kept"),
    [(" fox", 15, ("fox", 16)), ("fox ", 16, ("fox", 16)), ("  fox\n", 16, ("fox", 18)), ("fox", 16, ("fox", 16))],
)
def test_white_space_around_an_answer_is_not_trained(jsonl, squad_tokenizer, text, start, kept):
    context = "The quick brown " + (text if "\n" in text else "fox ") + "jumps"
    questions = load_questions(one_question(jsonl, text, start, context))
    assert (questions[0]["answers"]["text"], questions[0]["answers"]["answer_start"]) == ([kept[0]], [kept[1]])
    assert trained(windows(questions, squad_tokenizer, 60, 8), context) == ["fox"]


@pytest.mark.parametrize(("text", "start"), [("", 0), ("", -1), (" ", 3), (["", ""], [0, 5]), ([], [])])
def test_empty_answers_are_none(jsonl, squad_tokenizer, text, start):
    questions = load_questions(one_question(jsonl, text, start, is_impossible=True))
    assert questions[0]["answers"] == {"text": [], "answer_start": []}
    (row,) = windows(questions, squad_tokenizer, 60, 8)
    assert (row["start_positions"], row["end_positions"]) == (0, 0)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((["fox", ""], [16, 0]), "has an empty answer beside 'fox'; leave one of them out"),
        (("jumps", -5), "has the answer 'jumps' at answer_start -5, where its context reads 'The q'"),
        (("The", -5), "has the answer 'The' at answer_start -5"),
        (("fox", 15), "has the answer 'fox' at answer_start 15, where its context reads ' fo'; correct answer_start"),
        ((["fox"], ["16"]), "has the answer 'fox' at answer_start '16'; give a text and a whole number"),
        (([7], [16]), "has the answer 7 at answer_start 16; give a text"),
    ],
)
def test_answers_that_stand_elsewhere_are_refused_by_file_and_place(jsonl, answers, message):
    with pytest.raises(ValueError, match=rf"dev.jsonl\): line 1 \(id 'q'\) {message}"):
        load_questions(one_question(jsonl, *answers))


def test_an_impossible_question_has_no_answer(jsonl):
    with pytest.raises(ValueError, match=r"\(id 'q'\) is_impossible and has the answer 'fox'"):
        load_questions(one_question(jsonl, "fox", 16, is_impossible=True))


def test_an_answer_inside_a_token_takes_it_whole_and_is_counted(jsonl, squad_tokenizer, caplog):
    context = "The quick brown foxes jumps"
    questions = load_questions(one_question(jsonl, "fox", 16, context))
    assert trained(windows(questions, squad_tokenizer, 60, 8), context) == ["foxes"]
    assert "1 of 1 answers begin or end inside a token, which is taken whole" in caplog.text


def test_an_answer_of_which_no_token_is_left(jsonl, squad_tokenizer):
    tokenizer = copy.deepcopy(squad_tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("fox", "")
    with pytest.raises(ValueError, match="question 'q' has the answer 'fox', of which the tokenizer makes no token"):
        windows(load_questions(one_question(jsonl, "fox", 16)), tokenizer, 60, 8)


@pytest.mark.parametrize("at", ["begin", "end"])
def test_a_character_without_a_token_costs_no_answer(jsonl, squad_tokenizer, at):
    """A mark of no width at the edge of an answer is part of no token; the answer is still found."""
    tokenizer = copy.deepcopy(squad_tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    text = "\u200bfox" if at == "begin" else "fox\u200b"
    context = f"The quick brown {text}"
    questions = load_questions(one_question(jsonl, text, 16, context))
    assert trained(windows(questions, tokenizer, 60, 8), context) == ["fox"]


def test_a_sign_before_the_answer_is_not_trained(jsonl, squad_tokenizer):
    context = "The quick brown .fox. jumps"
    questions = load_questions(one_question(jsonl, "fox", 17, context))
    assert trained(windows(questions, squad_tokenizer, 60, 8), context) == ["fox"]


def test_a_letter_of_several_tokens_is_trained_whole(jsonl):
    """Of a byte-level tokenizer, whose tokens of one letter cover the same characters."""
    names = {name: i for i, name in enumerate(["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(names, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    context = "in \u65e5\u672c now"
    (row,) = windows(load_questions(one_question(jsonl, "\u65e5\u672c", 3, context)), tokenizer, 60, 8)
    assert trained([row], context) == ["\u65e5\u672c"]
    assert row["end_positions"] - row["start_positions"] + 1 == 6  # three bytes each


def test_fields_of_pairs_mean_nothing_to_questions(jsonl):
    path = one_question(jsonl, "fox", 16)
    for key, value in (("premise", "x"), ("label", "x"), ("labels", ["entailment"])):
        with pytest.raises(ValueError, match=f"has {key}=.*questions are read by SQuAD's names: leave it out"):
            load_questions({"path": path, key: value})
    with pytest.raises(ValueError, match="is of the task 'nli' and was to be read as questions"):
        load_questions({"path": path, "task": "nli"})


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("squad/dev-v1.1.rebuilt.json", 10_570),
        ("squad/train-v1.1.partial.json", 8_200),
        ("adversarial_squad/sample1k-HCVerifyAll.json", 3_560),
        ("adversarial_squad/sample1k-HCVerifySample.json", 1_787),
    ],
)
def test_the_public_files_load_whole(real_data, path, count):
    assert len(load_questions(real_data(path))) == count
