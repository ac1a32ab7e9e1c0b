"""Extractive question answering: SQuAD's questions, and the windows of their paragraphs that a model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from infobert_fast.data.cache import cached_rows, fingerprint, tokenizer_key
from infobert_fast.data.files import read_document, read_rows
from infobert_fast.data.source import Source, SourceLike, check_file, load_hub, source_key, take

__all__ = ["QUESTION_FEATURES", "load_questions", "question_room", "windows"]

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


def load_questions(source: SourceLike) -> datasets.Dataset:
    """Questions with the columns ``id``, ``question``, ``context`` and ``answers`` (``text``, ``answer_start``).

    A file is SQuAD's JSON (1.1 or 2.0, plain or .gz), or a JSON line per question with these four fields; a dataset of
    the hub is one in the form of ``rajpurkar/squad``. Questions of SQuAD 2.0 without an answer have none there.

    Raises ``FileNotFoundError`` for a missing file; ``ValueError``, naming file and field, for everything else that
    cannot be read so, for two questions with one id, and for an answer that does not stand where it is said to.
    """
    source = Source.parse(source)
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
        for text, start in zip(texts, starts, strict=True):
            if kept["context"][start : start + len(text)] != text:
                raise ValueError(
                    f"{source.where}: {place} (id {kept['id']!r}) has the answer {text!r} at answer_start {start}, "
                    f"where its context reads {kept['context'][start : start + len(text)]!r}; correct answer_start"
                )
        if kept["id"] in seen:
            raise ValueError(f"{source.where}: {place} has the id {kept['id']!r} a second time; ids must differ")
        seen.add(kept["id"])
        yield {**kept, "answers": {"text": texts, "answer_start": starts}}
    if not seen:
        raise ValueError(f"{source.where} is empty: it holds no question; check path and split")


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

    Raises ``ValueError`` for a slow tokenizer, and for lengths that leave no room.
    """
    question_length = question_room(tokenizer, max_length, doc_stride)
    settings = {"max_length": max_length, "doc_stride": doc_stride, "question_length": question_length}
    return questions.map(
        _encode,
        batched=True,
        with_indices=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizer": tokenizer, **settings},
        remove_columns=questions.column_names,
        new_fingerprint=fingerprint("windows", questions._fingerprint, tokenizer_key(tokenizer), settings),
        desc="Cutting windows",
    )


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
        name: [] for name in ("length", "start_positions", "end_positions", "example", "starts", "ends")
    }
    for i, (row, spans) in enumerate(zip(of_question, offsets, strict=True)):
        context = [part == 1 for part in encoded.sequence_ids(i)]
        starts = [span[0] if inside else -1 for span, inside in zip(spans, context, strict=True)]
        ends = [span[1] if inside else -1 for span, inside in zip(spans, context, strict=True)]
        first, last = _positions(batch["answers"][row], starts, ends)
        columns["length"].append(len(spans))
        columns["start_positions"].append(first)
        columns["end_positions"].append(last)
        columns["example"].append(indices[row])
        columns["starts"].append(starts)
        columns["ends"].append(ends)
    return {**encoded, **columns}


def _cut(question: str, tokenizer: PreTrainedTokenizerBase, length: int) -> str:
    """The question's first ``length`` tokens."""
    if len(question) <= length:  # a token is a character at least
        return question
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(offsets) <= length else question[: offsets[length - 1][1]]


def _positions(answers: dict[str, list[Any]], starts: list[int], ends: list[int]) -> tuple[int, int]:
    """First and last token of the first answer, or (0, 0) where the window does not hold all of it."""
    if not answers["text"]:
        return 0, 0
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    inside = [i for i, start in enumerate(starts) if start >= 0]
    if not inside or starts[inside[0]] > begin or ends[inside[-1]] < end:
        return 0, 0
    first = max(i for i in inside if starts[i] <= begin)
    return first, min(i for i in inside if ends[i] >= end)
