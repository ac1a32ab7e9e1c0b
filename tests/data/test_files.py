"""Bad files: the error names the file, the line and the field."""

import gzip
import json
import os

import pytest

from infobert_fast.data.corpora import load, load_nli, stream
from infobert_fast.data.files import read_rows
from infobert_fast.data.tasks import TASKS

GOOD = {"premise": "a cat sleeps", "hypothesis": "an animal sleeps", "label": "entailment"}
LONG = 7_312


def lines(count, bad, number):
    return [json.dumps(GOOD)] * (number - 1) + [bad] + [json.dumps(GOOD)] * (count - number)


def row(**changes):
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not ...})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(hypothesis=...), r"line 7312 has no field 'hypothesis'; it has \['premise', 'label'\]: correct the file"),
        (row(label="perhaps"), "line 7312 has the unknown label 'perhaps' in 'label'; known are"),
        (row(label=1), "line 7312 has the label 1 in 'label', an integer, and line 1 has a word: one of them is wrong"),
        (row(label=True), "line 7312 has the unknown label True"),
        (row(premise=["a", "b"]), r"line 7312 has premise \['a', 'b'\], which is no text"),
        (row(premise=3), "line 7312 has premise 3, which is no text"),
        ("[1, 2]", "line 7312 holds a list; it must be an object with named fields"),
        (row()[:-3], r"line 7312, column \d+ is no JSON: .*; correct the file"),
    ],
)
def test_one_bad_line_among_many(tmp_path, bad, message):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines(7_320, bad, LONG)))
    with pytest.raises(ValueError, match=message) as error:
        load_nli(str(path))
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match=message):  # streamed, when it is reached
        list(stream(str(path)))


def test_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + b'{"premise": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl\): line 2 is not UTF-8: its byte 17 is 0xe9; convert the file"):
        load_nli(str(path))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".tsv.gz", ".json.gz"])
def test_a_truncated_gzip_file(tmp_path, ending):
    rows = [{**GOOD, "premise": f"cat {i * 2654435761 % 2**32}"} for i in range(2_000)]
    text = {
        ".jsonl.gz": "".join(json.dumps(row) + "\n" for row in rows),
        ".json.gz": json.dumps(rows, indent=0),
        ".tsv.gz": "".join("\t".join(cells) + "\n" for cells in [list(GOOD), *(list(row.values()) for row in rows)]),
    }[ending]
    whole = gzip.compress(text.encode())
    path = tmp_path / f"train{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train.*the gzip stream breaks off after line \d+ .*copy it again"):
        load_nli(str(path))


def test_what_is_no_gzip_at_all(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_text(row())
    with pytest.raises(ValueError, match=r"breaks off after line 0 .*Not a gzipped file"):
        load_nli(str(path))


def test_a_table_with_a_short_line_and_an_open_quote(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("premise\thypothesis\tlabel\n" + "a\tb\te\n" * 20 + "a\tb\n")
    with pytest.raises(ValueError, match=r"line 22 has no field 'label'; it has \['premise', 'hypothesis'\]"):
        load_nli(str(path))
    path = tmp_path / "train.csv"
    path.write_text('premise,hypothesis,label\n"a,b,e\n')
    with pytest.raises(ValueError, match=r"line 2 cannot be read: unexpected end of data"):
        load_nli(str(path))


def test_a_document_names_the_example(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"mnli": [GOOD, {**GOOD, "label": 7}]}))
    with pytest.raises(ValueError, match="example 2 has the unknown label 7"):
        load_nli(f"{path}#mnli")


def test_lines_in_a_file_called_json(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text("\n".join([row(), row(label="neutral")]))
    assert load_nli(str(path))["label"][:] == [0, 1]
    path.write_text("\n".join([row(), row()[:-2]]))
    with pytest.raises(ValueError, match="line 2, column"):
        load_nli(str(path))


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_bytes(b"\xef\xbb\xbfpremise\thypothesis\tlabel\r\na\tb\te\r\n\r\n")
    assert load_nli(str(path)).to_list() == [{"premise": "a", "hypothesis": "b", "label": 0}]


def test_a_number_that_is_none(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("index\tsentence1\tsentence2\tscore\n0\ta\tb\t2.5\n1\ta\tb\thigh\n")
    with pytest.raises(ValueError, match="line 3 has the label 'high' in 'score', which is no number"):
        load(str(path), TASKS["stsb"])


def test_labels_that_map_to_nothing(jsonl):
    with pytest.raises(ValueError, match=r"dev.jsonl\): labels maps to 'maybe'; allowed are .*entailment"):
        load_nli({"path": jsonl(GOOD), "labels": {"entailment": "maybe"}})


def test_a_changed_file_is_read_anew(tmp_path):
    """The cache goes by content: same path, same size, same date."""
    path = tmp_path / "dev.jsonl"
    path.write_text(row(premise="one"))
    before = path.stat()
    assert load_nli(str(path))["premise"][:] == ["one"]
    path.write_text(row(premise="two"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_nli(str(path))["premise"][:] == ["two"]


def test_a_cell_of_any_length(tmp_path):
    text = "word " * 60_000  # beyond the csv module's 131,072 characters
    for name, line in (("a.csv", f'"{text}",e'), ("a.tsv", f"{text}\te")):
        path = tmp_path / name
        path.write_text(("text,label\n" if name.endswith("csv") else "text\tlabel\n") + line + "\n")
        (row,) = read_rows(str(path), "it")
        assert row.cells == {"text": text, "label": "e"}


def test_a_comma_without_quotes_moves_no_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,premise,hypothesis\ne,a man, a plan,b\n")
    with pytest.raises(ValueError, match="it: line 2 has 4 cells and the header 3; put texts that hold a comma into"):
        list(read_rows(str(path), "it"))


def test_cells_beyond_a_tables_header_are_counted(tmp_path, caplog):
    path = tmp_path / "a.tsv"
    path.write_text("premise\tlabel\na\te\nb\te\tx\nc\te\ty\tz\n")
    assert [row.cells["premise"] for row in read_rows(str(path), "it")] == ["a", "b", "c"]
    assert "it: 2 lines have more cells than the header, the first of them line 3" in caplog.text


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("premise,label,label,,\na,e,n,,\n")
    with pytest.raises(ValueError, match="it: the header has 'label' twice"):
        list(read_rows(str(path), "it"))
