"""Corpora of labelled texts and pairs from the hub and from files, brought to their task's one form."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import datasets

from infobert_fast.data.cache import cached_rows, fingerprint
from infobert_fast.data.files import Row, read_rows
from infobert_fast.data.labels import FEATURES, LABELS, UNLABELLED, fold, label_table
from infobert_fast.data.source import Source, SourceLike, check_file, load_hub, source_key, take
from infobert_fast.data.tasks import NLI, Task

__all__ = [
    "FEATURES",
    "LABELS",
    "Source",
    "SourceLike",
    "by_name",
    "concatenate",
    "load",
    "load_many",
    "load_nli",
    "stream",
]

logger = logging.getLogger(__name__)


def load(source: SourceLike, task: Task = NLI) -> datasets.Dataset:
    """Load one corpus with the columns of ``task.features``: its texts, and ``label``, an index or a number.

    Labels are taken by name wherever there are names (words, or a hub dataset's ``ClassLabel``); integers without
    names are read in the order of the task's labels, for NLI with a warning that says so. Examples that are marked as
    unlabelled (-1 or "-") are dropped and counted in the log. A .tsv file is read without quoting, as GLUE's are
    written; a .csv file with. What was read is kept in the cache of ``datasets``, under a name made of the file's
    content and of everything else that it depends on.

    Raises ``FileNotFoundError`` for a missing file; ``ValueError``, naming file, line and field, for everything else
    that cannot be read so.
    """
    source = Source.parse(source)
    rows, made_of = _reader(source, task)
    return take(cached_rows(rows, task.features, fingerprint("examples", task.name, made_of)), source)


def load_nli(source: SourceLike) -> datasets.Dataset:
    """:func:`load` for natural language inference: ``premise``, ``hypothesis``, ``label`` (an index into LABELS)."""
    return load(source, NLI)


def stream(source: SourceLike, task: Task = NLI, buffer: int = 10_000) -> datasets.IterableDataset:
    """As :func:`load`, without reading ahead or keeping anything: for corpora that do not fit.

    ``limit`` takes the first examples, and ``seed`` shuffles these within a buffer of that many: the other order would
    take other examples in every epoch. ``repeat`` acts as in :func:`load`.
    """
    source = Source.parse(source)
    rows, _ = _reader(source, task, streaming=True)
    dataset = datasets.IterableDataset.from_generator(rows, features=task.features)
    if source.limit is not None:
        dataset = dataset.take(source.limit)
    if source.seed is not None:
        dataset = dataset.shuffle(seed=source.seed, buffer_size=buffer)
    return dataset if source.repeat == 1 else dataset.repeat(source.repeat)


def load_many(sources: Iterable[SourceLike], task: Task = NLI) -> dict[str, datasets.Dataset]:
    """Load corpora for evaluation, each under its name. Raises ``ValueError`` where two have the same name."""
    return {name: load(source, task) for name, source in by_name(sources).items()}


def by_name(sources: Iterable[SourceLike]) -> dict[str, Source]:
    """Sources by the names they are reported under. Raises ``ValueError`` where two have the same."""
    parsed: dict[str, Source] = {}
    for source in map(Source.parse, sources):
        if (name := source.display_name) in parsed:
            paths = f"{parsed[name].path!r} and {source.path!r}"
            raise ValueError(
                f"sources {paths} are both named {name!r}; give one another name, as in other={source.path}"
            )
        parsed[name] = source
    return parsed


def concatenate(sources: Iterable[SourceLike], task: Task = NLI) -> datasets.Dataset:
    """Load corpora for training and join them in the given order. Raises ``ValueError`` where there are none."""
    loaded = [load(source, task) for source in sources]
    if not loaded:
        raise ValueError("sources is empty; give at least one, as in data/train.jsonl or snli:train")
    return datasets.concatenate_datasets(loaded)


def _reader(
    source: Source, task: Task, streaming: bool = False
) -> tuple[Callable[[], Iterator[dict[str, Any]]], list[Any]]:
    """What yields the examples, and what they depend on; the columns are found, and named if absent, right away."""
    names: Sequence[str] | None = None
    made_of: list[Any] = []
    if source.is_file:
        check_file(source)

        def raw_rows() -> Iterable[Row]:
            return read_rows(source.path, source.where, source.field, task.header)

        first = list(itertools.islice(raw_rows(), 10))
        there = list(dict.fromkeys(name for row in first for name in row.cells)) or None
        made_of = [] if streaming else source_key(source)
    else:
        raw = load_hub(source, streaming)
        there = list(raw.column_names or next(iter(raw)))
        columns = _columns(source, task, there)
        feature = (raw.features or {}).get(columns[-1])
        names = feature.names if isinstance(feature, datasets.ClassLabel) else None
        raw = raw.select_columns(list(columns))

        def raw_rows() -> Iterable[Row]:
            return (Row(f"example {number}", cells) for number, cells in enumerate(raw, 1))

        first = list(itertools.islice(raw_rows(), 10))
        made_of = [] if streaming else [raw._fingerprint, columns, repr(source.labels)]
    if there is None:
        raise ValueError(f"{source.where} is empty: it has no examples; check path and field")
    columns = _columns(source, task, there)
    try:
        table = label_table(source.labels, names, task.words)
    except ValueError as error:
        raise ValueError(f"{source.where}: {error}") from error
    unnamed = task is NLI and source.labels is None and names is None
    if unnamed and any(fold(row.cells.get(columns[-1])).isdigit() for row in first):
        known = dict(enumerate(LABELS))
        logger.warning("%s: integer labels without names, read as %s; set labels to be sure", source.where, known)
    return lambda: _examples(raw_rows(), source, task, columns, table, names), made_of


def _columns(source: Source, task: Task, there: Sequence[str]) -> tuple[str, ...]:
    """The columns that hold the task's texts and the label: those the source names, the others by a known layout."""
    given = (*(source.premise, source.hypothesis)[: len(task.texts)], source.label)
    layouts = [
        tuple(named or usual for named, usual in zip(given, layout, strict=True))
        for layout in task.columns(source.fever_order)
    ]
    for layout in layouts:
        if set(layout) <= set(there):
            return layout
    nested = source.path.removesuffix(".gz").endswith(".json") and source.field is None
    hint = "; for a list nested in the document set field" if nested else ""
    arguments = (*("premise", "hypothesis")[: len(task.texts)], "label")
    argument, column = next(pair for pair in zip(arguments, layouts[0], strict=True) if pair[1] not in there)
    raise ValueError(f"{source.where} has no field {argument}={column!r}; it has {list(there)}{hint}")


def _examples(
    rows: Iterable[Row],
    source: Source,
    task: Task,
    columns: tuple[str, ...],
    table: dict[str, int],
    names: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    """The rows in the task's form, without the unlabelled ones."""
    total = kept = 0
    kind = place_of_kind = ""
    for place, cells in rows:
        total += 1
        if missing := [column for column in columns if column not in cells]:
            raise ValueError(
                f"{source.where}: {place} has no field {missing[0]!r}; it has {list(cells)}: correct the file"
            )
        raw = cells[columns[-1]]
        if fold(raw) in UNLABELLED and fold(raw) not in table:
            continue
        label = (
            _index(raw, place, source, task, columns[-1], table, names)
            if task.labels
            else _number(raw, place, source, columns[-1])
        )
        if task.labels and source.labels is None:
            this = "an integer" if fold(raw).isdigit() else "a word"
            if kind and this != kind:
                raise ValueError(
                    f"{source.where}: {place} has the label {raw!r} in {columns[-1]!r}, {this}, and {place_of_kind} "
                    f"has {kind}: one of them is wrong; correct the file, or set labels to say what each means"
                )
            kind, place_of_kind = this, place_of_kind or place
        example: dict[str, Any] = {"label": label}
        for text, column in zip(task.texts, columns, strict=False):
            if not isinstance(cells[column], str):
                named = text if text == column else f"{text} ({column!r})"
                raise ValueError(
                    f"{source.where}: {place} has {named} {cells[column]!r}, which is no text; correct the data"
                )
            example[text] = cells[column]
        kept += 1
        yield example
    if kept < total:
        logger.info("%s: dropped %d of %d examples, which are unlabelled", source.where, total - kept, total)
    if not kept:
        raise ValueError(
            f"{source.where} is empty: none of its {total} examples is labelled; check path, split and label"
        )


def _index(
    raw: Any,
    place: str,
    source: Source,
    task: Task,
    column: str,
    table: dict[str, int],
    names: Sequence[str] | None,
) -> int:
    found = None if isinstance(raw, bool) else table.get(fold(raw))
    if found is None:
        shown = f"{raw!r} (named {names[raw]!r})" if names and isinstance(raw, int) and raw < len(names) else repr(raw)
        raise ValueError(
            f"{source.where}: {place} has the unknown label {shown} in {column!r}; known are {sorted(table)}; set "
            f"labels to map it to {', '.join(task.labels)}"
        )
    return found


def _number(raw: Any, place: str, source: Source, column: str) -> float:
    try:
        number = float(raw)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(raw, bool):
        raise ValueError(f"{source.where}: {place} has the label {raw!r} in {column!r}, which is no number")
    return number
