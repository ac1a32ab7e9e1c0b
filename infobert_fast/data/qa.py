"""Extractive question answering: SQuAD's questions, and the windows of their paragraphs that a model reads."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from infobert_fast.data.cache import cached_rows, fingerprint, tokenizer_key
from infobert_fast.data.files import read_document, read_rows
from infobert_fast.data.source import Source, SourceLike, check_file, load_hub, source_key, take
from infobert_fast.data.tasks import QUESTION_ANSWERING

__all__ = ["QUESTION_FEATURES", "load_questions", "question_room", "windows"]

logger = logging.getLogger(__name__)

QUESTION_FEATURES = datasets.Features(
    id=datasets.Value("string"),
    question=datasets.Value("string"),
    context=datasets.Value("string"),
    answers={
        "text": datasets.List(datasets.Value("string")),
        "answer_start": datasets.List(datasets.Value("int64")),
    },
)
MAX_QUESTION_LENGTH = 64  # in tokens, as BERT's
_Span = tuple[int, int]  # first character, and the one behind the last


def load_questions(source: SourceLike) -> datasets.Dataset:
    """Questions with the columns ``id``, ``question``, ``context`` and ``answers`` (``text``, ``answer_start``).

    A file is SQuAD's JSON (1.1 or 2.0, plain or .gz), or a JSON line per question with these four fields; a dataset of
    the hub is one in the form of ``rajpurkar/squad``. Questions of SQuAD 2.0 without an answer have none there, as have
    those whose answers are all empty texts. White space around an answer is taken off, and its place moved.

    Raises ``FileNotFoundError`` for a missing file; ``ValueError``, naming file and field, for everything else that
    cannot be read so, for two questions with one id, for an answer that does not stand where it is said to, for an
    empty answer beside another, and for answers to a question that ``is_impossible``.
    """
    source = Source.parse(source)
    if source.task not in (None, QUESTION_ANSWERING):
        raise ValueError(f"{source.where} is of the task {source.task!r} and was to be read as questions")
    source.refuse("questions are read by SQuAD's names", "premise", "hypothesis", "label", "labels", "field")
    if source.is_file:
        check_file(source)
        key = fingerprint("questions", source_key(source))
        return take(cached_rows(lambda: _checked(_file(source), source), QUESTION_FEATURES, key), source)
    raw = load_hub(source)
    key = fingerprint("questions", raw._fingerprint)
    return take(cached_rows(lambda: _checked(_listed(raw), source), QUESTION_FEATURES, key), source)


def _listed(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        yield f"example {number}", row


def _file(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    if source.path.removesuffix(".gz").endswith(".json"):
        yield from _squad(read_document(source.path, source.where), source.where)
    else:
        yield from read_rows(source.path, source.where)


def _squad(document: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk ``data[].paragraphs[].qas[]``; what is not there is named by its path in the document."""
    for a, article in enumerate(_get(document, "data", where, "the document", list)):
        for p, paragraph in enumerate(_get(article, "paragraphs", where, f"data[{a}]", list)):
            place = f"data[{a}].paragraphs[{p}]"
            context = _get(paragraph, "context", where, place, str)
            for q, question in enumerate(_get(paragraph, "qas", where, place, list)):
                inner = f"{place}.qas[{q}]"
                answers = _get(question, "answers", where, inner, list)
                columns = {
                    name: [_get(answer, name, where, f"{inner}.answers", kind) for answer in answers]
                    for name, kind in (("text", str), ("answer_start", int))
                }
                yield inner, {**question, "context": context, "answers": columns}


def _get(mapping: Any, field: str, where: str, place: str, kind: type) -> Any:
    if not isinstance(mapping, dict) or field not in mapping:
        there = list(mapping) if isinstance(mapping, dict) else f"a {type(mapping).__name__}"
        raise ValueError(f"{where}: {place} has no field {field!r}; it has {there}: SQuAD's JSON is needed")
    value = mapping[field]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(
            f"{where}: {place}.{field} is a {type(value).__name__}; it must be a {kind.__name__}: correct the file"
        )
    return value


def _checked(rows: Iterable[tuple[str, dict[str, Any]]], source: Source) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for place, row in rows:
        kept: dict[str, Any] = {
            name: _get(row, name, source.where, place, str) for name in ("id", "question", "context")
        }
        answers = _get(row, "answers", source.where, place, dict)
        texts = _get(answers, "text", source.where, f"{place}.answers", list)
        starts = _get(answers, "answer_start", source.where, f"{place}.answers", list)
        if len(texts) != len(starts):
            raise ValueError(f"{source.where}: {place} has {len(texts)} answers and {len(starts)} answer_starts")
        named = f"{source.where}: {place} (id {kept['id']!r})"
        found = [span for pair in zip(texts, starts, strict=True) if (span := _answer(*pair, kept["context"], named))]
        if found and len(found) < len(texts):
            raise ValueError(f"{named} has an empty answer beside {found[0][0]!r}; leave one of them out")
        if found and row.get("is_impossible"):
            raise ValueError(f"{named} is_impossible and has the answer {found[0][0]!r}; leave one of them out")
        if kept["id"] in seen:
            raise ValueError(f"{source.where}: {place} has the id {kept['id']!r} a second time; ids must differ")
        seen.add(kept["id"])
        yield {**kept, "answers": {"text": [text for text, _ in found], "answer_start": [start for _, start in found]}}
    if not seen:
        raise ValueError(f"{source.where} is empty: it holds no question; check path and split")


def _answer(text: Any, start: Any, context: str, named: str) -> tuple[str, int] | None:
    """An answer without the white space around it, and where it begins; None for the empty text."""
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f"{named} has the answer {text!r} at answer_start {start!r}; give a text and a whole number")
    if not text.strip():
        return None
    there = context[max(start, 0) : max(start, 0) + len(text)]
    if start < 0 or there != text:
        raise ValueError(
            f"{named} has the answer {text!r} at answer_start {start}, where its context reads {there!r}; correct "
            "answer_start"
        )
    return text.strip(), start + len(text) - len(text.lstrip())


def windows(
    questions: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 384,
    doc_stride: int = 128,
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Cut each question's paragraph into windows of at most ``max_length`` tokens that overlap by ``doc_stride``.

    A row is one window: ``input_ids`` (and ``token_type_ids`` where the model has them) of question and part of the
    paragraph, ``length``, ``start_positions`` and ``end_positions`` (of the first answer's tokens; 0, the sentence
    token, where the window does not hold the whole of it), ``example`` (the question's number) and, as ``starts`` and
    ``ends``, the characters of the paragraph that each token covers (-1 where it covers none). A question is cut after
    64 tokens. Nothing is padded.

    Where an answer begins or ends inside a token, that token is taken whole: ``wider`` marks these windows, and a
    warning counts the answers.

    Raises ``ValueError`` for a slow tokenizer, for lengths that leave no room, and for an answer of which the tokenizer
    makes no token.
    """
    question_length = question_room(tokenizer, max_length, doc_stride)
    settings = {"max_length": max_length, "doc_stride": doc_stride, "question_length": question_length}
    cut = questions.map(
        _encode,
        batched=True,
        with_indices=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, **settings},
        remove_columns=questions.column_names,
        new_fingerprint=fingerprint("windows", questions._fingerprint, tokenizer_key(tokenizer), settings),
        desc="Cutting windows",
    )
    if wider := len({example for example, flag in zip(cut["example"], cut["wider"], strict=True) if flag}):
        logger.warning("%d of %d answers begin or end inside a token, which is taken whole", wider, len(questions))
    return cut


def question_room(tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> int:
    """Tokens kept of a question in each window. Raises as :func:`windows`."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} tells no character offsets, from which answers are read: use a fast tokenizer"
        )
    special = tokenizer.num_special_tokens_to_add(pair=True)
    question_length = min(MAX_QUESTION_LENGTH, (max_length - special) // 2)
    if question_length < 1 or doc_stride < 0 or max_length - special - question_length <= doc_stride:
        raise ValueError(
            f"max_length is {max_length} and doc_stride {doc_stride}: a window has room for "
            f"{max_length - special - question_length} tokens of the paragraph beside a question of {question_length} "
            "and must move on; lower doc_stride or raise max_length"
        )
    return question_length


def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    doc_stride: int,
    question_length: int,
) -> dict[str, list[Any]]:
    encoded = tokenizer(
        [_cut(text.strip(), tokenizer, question_length) for text in batch["question"]],
        batch["context"],
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    of_question = encoded.pop("overflow_to_sample_mapping")
    offsets = encoded.pop("offset_mapping")
    columns: dict[str, list[Any]] = {
        name: [] for name in ("length", "start_positions", "end_positions", "example", "starts", "ends", "wider")
    }
    inside = [[part == 1 for part in encoded.sequence_ids(i)] for i in range(len(offsets))]
    edges: dict[int, tuple[_Span, _Span] | None] = {}  # by question, whose windows stand together
    for row, group in itertools.groupby(range(len(offsets)), key=of_question.__getitem__):
        tokens = {span for i in group for span, within in zip(offsets[i], inside[i], strict=True) if within}
        answers = batch["answers"][row]
        edges[row] = _edges(answers, tokens, batch["id"][row]) if answers["text"] else None
    for row, spans, within in zip(of_question, offsets, inside, strict=True):
        here = [span if flag else (-1, -1) for span, flag in zip(spans, within, strict=True)]
        first = last = 0
        wider = False
        if (wanted := edges[row]) is not None and wanted[0] in here and wanted[1] in here:
            first, last = here.index(wanted[0]), len(here) - 1 - here[::-1].index(wanted[1])
            taken = batch["context"][row][wanted[0][0] : wanted[1][1]]
            wider = taken.strip() != batch["answers"][row]["text"][0].strip()
        columns["length"].append(len(spans))
        columns["start_positions"].append(first)
        columns["end_positions"].append(last)
        columns["example"].append(indices[row])
        columns["starts"].append([start for start, _ in here])
        columns["ends"].append([end for _, end in here])
        columns["wider"].append(wider)
    return {**encoded, **columns}


def _edges(answers: dict[str, list[Any]], tokens: set[_Span], key: str) -> tuple[_Span, _Span]:
    """The characters of the first and the last token that hold some of the first answer's."""
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    held = sorted(span for span in tokens if span[0] < end and span[1] > begin and span[0] < span[1])
    if not held:
        raise ValueError(
            f"question {key!r} has the answer {answers['text'][0]!r}, of which the tokenizer makes no token: leave the "
            "question out, or use another tokenizer"
        )
    return held[0], held[-1]


def _cut(question: str, tokenizer: PreTrainedTokenizerBase, length: int) -> str:
    """The question's first ``length`` tokens."""
    if len(question) <= length:  # a token is a character at least
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= length else question[: offsets[length - 1][1]]
