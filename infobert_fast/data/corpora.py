"""Corpora of labelled texts and pairs from the hub and from files, brought to their task's one form."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from infobert_fast.data.cache import cached_rows, fingerprint
from infobert_fast.data.files import Row, read_rows
from infobert_fast.data.labels import FEATURES, LABELS, UNDECIDED, UNLABELLED, fold, label_table
from infobert_fast.data.source import Source, SourceLike, check_file, load_hub, source_key, take
from infobert_fast.data.tasks import NLI, NLI2, Task

__all__ = [
    "FEATURES",
    "LABELS",
    "Source",
    "SourceLike",
    "by_name",
    "concatenate",
    "fits",
    "load",
    "load_many",
    "load_nli",
    "load_texts",
    "stream",
]

logger = logging.getLogger(__name__)


def load(source: SourceLike, task: Task = NLI) -> datasets.Dataset:
    """Load one corpus with the columns of ``task.features``: its texts, and ``label``, an index or a number.

    Labels are taken by name wherever there are names (words, or a hub dataset's ``ClassLabel``); integers without
    names are read in the order of the task's labels, with a warning that says so unless the task's published files have
    integers. Examples that are marked as unlabelled ("-", and -1 where labels are classes) are dropped, with a warning
    that counts them. A .tsv file is read without quoting, as GLUE's are written; a .csv file with. What was read is
    kept in the cache of ``datasets``, under a name made of the file's content and of all else that it depends on.

    Raises ``FileNotFoundError`` for a missing file; ``ValueError``, naming file, line and field, for everything else
    that cannot be read so.
    """
    source = Source.parse(source)
    rows, made_of = _reader(source, task)
    key = fingerprint("examples", task.name, made_of)
    loaded = cached_rows(rows, task.features, key)
    labels = loaded.with_format("arrow")[:]["label"]
    labelled = labels.is_valid().to_numpy()
    if not labelled.all():
        _say_dropped(source, int((~labelled).sum()), len(labelled))
        loaded = loaded.select(np.flatnonzero(labelled), new_fingerprint=fingerprint("labelled", key))
    if not task.labels and (marks := int((labels.drop_null().to_numpy() == -1).sum())):
        logger.warning("%s: %d labels are -1 and read as numbers; mark unlabelled examples by '-'", source.where, marks)
    return take(loaded, source)


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

    def labelled() -> Iterator[dict[str, Any]]:
        total = dropped = 0
        for row in rows():
            total += 1
            dropped += row["label"] is None
            if row["label"] is not None:
                yield row
        if dropped:
            _say_dropped(source, dropped, total)

    dataset = datasets.IterableDataset.from_generator(labelled, features=task.features)
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


def load_texts(source: SourceLike, task: Task = NLI) -> datasets.Dataset:
    """The texts of a corpus whose labels are not read: each ``label`` is -1.

    Raises as :func:`load` for files and columns.
    """
    source = Source.parse(source)
    if source.is_file:
        check_file(source)
        rows: Iterable[Row] = list(read_rows(source.path, source.where, source.field, task.header))
    else:
        rows = [Row(f"example {number}", cells) for number, cells in enumerate(load_hub(source), 1)]
    there = list(dict.fromkeys(name for row in rows for name in row.cells))
    given = (source.premise, source.hypothesis)[: len(task.texts)]
    layouts = [
        [named or usual for named, usual in zip(given, layout, strict=False)]
        for layout in task.columns(source.fever_order)
    ]
    columns = next((layout for layout in layouts if set(layout) <= set(there)), None)
    if columns is None:
        raise ValueError(f"{source.where} has no fields {' and '.join(layouts[0])}; it has {there}: name them")
    for place, cells in rows:
        if bad := [column for column in columns if not isinstance(cells.get(column), str)]:
            raise ValueError(f"{source.where}: {place} has {bad[0]} {cells.get(bad[0])!r}, which is no text")
    examples = {text: [row.cells[column] for row in rows] for text, column in zip(task.texts, columns, strict=True)}
    labels = {"label": [-1] * len(examples[task.texts[0]])}
    return take(datasets.Dataset.from_dict(examples | labels, features=task.features), source)


def fits(source: SourceLike, task: Task) -> bool:
    """Whether a corpus has the columns of a task. Raises as :func:`load` for one that is not there."""
    source = Source.parse(source)
    if source.is_file:
        check_file(source)
        rows = itertools.islice(read_rows(source.path, source.where, source.field, task.header), 1)
        there = [name for row in rows for name in row.cells]
    else:
        there = load_hub(source).column_names
    try:
        _columns(source, task, there)
    except ValueError:
        return False
    return True


def _reader(
    source: Source, task: Task, streaming: bool = False
) -> tuple[Callable[[], Iterator[dict[str, Any]]], list[Any]]:
    """What yields the examples, and what they depend on; the columns are found, and named if absent, right away."""
    if source.task not in (None, task.name):
        raise ValueError(f"{source.where} is of the task {source.task!r} and was to be read as {task.name!r}")
    if len(task.texts) == 1:
        source.refuse(f"{task.name} has a single text, which premise names", "hypothesis")
    if not task.labels:
        source.refuse(f"the labels of {task.name} are numbers", "labels")
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
    if task.labels and not task.numbered and source.labels is None and names is None:
        raw_labels = (fold(row.cells.get(columns[-1])) for row in raw_rows())
        if next((label for label in raw_labels if label not in UNLABELLED), "").isdigit():  # then all of them are
            known = dict(enumerate(task.labels))
            logger.warning("%s: integer labels without names, read as %s; set labels to be sure", source.where, known)
    return lambda: _examples(raw_rows(), source, task, columns, table, names), made_of


def _columns(source: Source, task: Task, there: Sequence[str]) -> tuple[str, ...]:
    """The columns that hold the task's texts and the label: those the source names, the others by a known layout."""
    given = (*(source.premise, source.hypothesis)[: len(task.texts)], source.label)
    layouts = [
        tuple(named or usual for named, usual in zip(given, layout, strict=True))
        for layout in task.columns(source.fever_order)
    ]
    nearest = max(layouts, key=lambda layout: len(set(layout) & set(there)))  # the first of several
    if set(nearest) <= set(there):
        return nearest
    texts = nearest[:-1]
    if set(texts) <= set(there):
        known = dict.fromkeys(layout[-1] for layout in layouts if layout[:-1] == texts)
        raise ValueError(
            f"{source.where} has no label: beside {' and '.join(map(repr, texts))} no field "
            f"{' or '.join(map(repr, known))}; it has {list(there)}: name the column that holds it, label={there[-1]!r}"
        )
    nested = source.path.removesuffix(".gz").endswith(".json") and source.field is None
    hint = "; for a list nested in the document set field, for SQuAD's the task qa" if nested else ""
    argument, column = next(
        pair for pair in zip(("premise", "hypothesis"), texts, strict=False) if pair[1] not in there
    )
    raise ValueError(f"{source.where} has no field {argument}={column!r}; it has {list(there)}{hint}")


def _examples(
    rows: Iterable[Row],
    source: Source,
    task: Task,
    columns: tuple[str, ...],
    table: dict[str, int],
    names: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    """The rows in the task's form; the unlabelled ones without texts, and None for a label."""
    total = kept = marked = 0
    unlabelled = UNLABELLED if task.labels else (UNDECIDED,)
    nothing = {**dict.fromkeys(task.texts, ""), "label": None}
    kind = place_of_kind = ""
    for place, cells in rows:
        total += 1
        if missing := [column for column in columns if column not in cells]:
            raise ValueError(
                f"{source.where}: {place} has no field {missing[0]!r}; it has {list(cells)}: correct the file"
            )
        raw = cells[columns[-1]]
        if fold(raw) in unlabelled and fold(raw) not in table:
            yield nothing
            continue
        label = (
            _index(raw, place, source, task, columns[-1], table, names)
            if task.labels
            else _number(raw, place, source, columns[-1])
        )
        marked += not task.labels and label == -1
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
    if kept == marked:  # a test set of the hub has -1 for every number
        raise ValueError(
            f"{source.where} is empty: none of its {total} examples is labelled; check path, split and label"
        )


def _say_dropped(source: Source, dropped: int, total: int) -> None:
    logger.warning("%s: dropped %d of %d examples, which are unlabelled", source.where, dropped, total)


def _index(
    raw: Any,
    place: str,
    source: Source,
    task: Task,
    column: str,
    table: dict[str, int],
    names: Sequence[str] | None,
) -> int:
    if (found := table.get(fold(raw))) is None:
        name = names[raw] if names and isinstance(raw, int) and raw < len(names) else None
        shown = repr(raw) if name is None else f"{raw!r} (named {name!r})"
        hint = f"set labels to map it to {', '.join(task.labels)}"
        if isinstance(source.labels, Mapping) and any(isinstance(key, bool) for key in source.labels):
            hint = "YAML takes yes and no, on and off without quotes for True and False: quote them in labels"
        elif task.labels == NLI.labels and fold(raw if name is None else name) in NLI2.words:
            hint = "these are two classes, entailed or not, which a model of three answers as well: the task is nli2"
        raise ValueError(
            f"{source.where}: {place} has the unknown label {shown} in {column!r}; known are {sorted(table)}; {hint}"
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
