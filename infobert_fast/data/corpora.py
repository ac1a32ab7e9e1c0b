"""NLI corpora from the hub and from files, brought to one form: ``premise``, ``hypothesis``, ``label``."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from infobert_fast.data.labels import FEATURES, LABELS, SPELLINGS, UNLABELLED, fold, label_table

logger = logging.getLogger(__name__)

_ENDINGS = tuple(ending + zipped for ending in (".jsonl", ".json", ".tsv", ".csv") for zipped in ("", ".gz"))
_JSON_DOCUMENT = (".json", ".json.gz")
_SHORTHAND = re.compile(
    r"(?:(?P<name>[^=/:#]+)=)?"  # no slash: `./lr=1/dev.jsonl` is a path
    r"(?P<path>.+?)"
    r"(?:(?:(?<=\.json)|(?<=\.json\.gz))#(?P<field>[^#/]+))?"  # only a JSON document has fields
    r"(?::(?P<split>\w+(?:\[[^\[\]]*\])?))?"  # `train`, `train[:1000]`; no dot: `a:b.jsonl` is a path
)


@dataclass(frozen=True)
class Source:
    """Where one NLI corpus comes from and how its columns and labels are to be read.

    ``path`` is a file ending in .jsonl, .json, .tsv or .csv (each also with .gz), or the name (or folder) of a dataset
    that ``datasets.load_dataset`` knows, with its ``config`` and ``split``. ``field`` is the key of a list nested in a
    JSON document. ``premise``, ``hypothesis`` and ``label`` name the columns: FEVER pairs in the order of the ANLI
    authors are ``premise="evidence", hypothesis="claim"``, the InfoBERT reference has them the other way round.
    ``labels`` maps the raw labels to :data:`LABELS`; a sequence gives the meaning of the integers 0, 1, 2. ``limit``
    keeps the first labelled examples, after a shuffle where ``seed`` is given; ``repeat`` then repeats them all (the
    ANLI authors train on their rounds 10, 20 and 10 times). ``name`` is what results are reported under.

    Raises ``ValueError`` for a combination that means nothing.
    """

    path: str
    name: str | None = None
    split: str | None = None
    config: str | None = None
    field: str | None = None
    premise: str = "premise"
    hypothesis: str = "hypothesis"
    label: str = "label"
    labels: Mapping[Any, str] | Sequence[str] | None = None
    limit: int | None = None
    seed: int | None = None
    repeat: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f"path must be a file or the name of a dataset, not {self.path!r}")
        for key, count in (("limit", self.limit), ("repeat", self.repeat)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{key} must be a whole number of at least 1, not {count!r} (source {self.path!r})")
        if self.field is not None and not self.path.endswith(_JSON_DOCUMENT):
            raise ValueError(f"field={self.field!r} needs a .json document, but path is {self.path!r}; leave it out")
        for key, text in (("split", self.split), ("config", self.config)):
            if text is not None and self.is_file:
                raise ValueError(
                    f"{key}={text!r} is for hub datasets, but path is the file {self.path!r}; leave it out"
                )
        if self.labels is not None:
            if isinstance(self.labels, str) or not isinstance(self.labels, Mapping | Sequence):
                raise ValueError(
                    f"labels must be a mapping or a sequence, not {self.labels!r}: {{'SUPPORTS': 'entailment', ...}}, "
                    f"or {list(LABELS)} for the meaning of 0, 1, 2"
                )
            for word in self.labels.values() if isinstance(self.labels, Mapping) else self.labels:
                if fold(word) not in SPELLINGS:
                    raise ValueError(f"labels maps to {word!r} (source {self.path!r}); allowed are {', '.join(LABELS)}")

    @classmethod
    def parse(cls, source: Source | str | Mapping[str, Any]) -> Source:
        """Read the shorthand ``[name=]path[#field][:split]``, or the mapping of a YAML file.

        ``snli:test``, ``data/dev.jsonl``, ``adv=advglue/dev.json#mnli``. Whatever the shorthand cannot say without
        ambiguity (a name with a slash, columns, labels) is said by the mapping, whose keys are this class's fields.

        Raises ``ValueError`` for text that is no shorthand and for unknown keys.
        """
        if isinstance(source, Source):
            return source
        if isinstance(source, str):
            match = _SHORTHAND.fullmatch(source.strip())
            if match is None or ("#" in match["path"] and not match["path"].endswith(_ENDINGS)):
                raise ValueError(
                    f"source {source!r} is not [name=]path[#field][:split], where #field follows a .json document "
                    "and :split a hub dataset; write a mapping with the key path instead"
                )
            return cls(match["path"], name=match["name"], split=match["split"], field=match["field"])
        allowed = [item.name for item in fields(cls)]
        if not isinstance(source, Mapping) or "path" not in source:
            raise ValueError(f"a source is a text or a mapping with the key path, not {source!r}; keys: {allowed}")
        if unknown := [key for key in source if key not in allowed]:
            raise ValueError(f"source {source['path']!r} has unknown keys {unknown}; allowed are {allowed}")
        return cls(**source)

    @property
    def is_file(self) -> bool:
        """Whether ``path`` is a data file rather than the name of a dataset."""
        return self.path.endswith(_ENDINGS) or Path(self.path).is_file()

    @property
    def display_name(self) -> str:
        """``name``, or what tells siblings apart: ``anli/test_r1``, ``advglue/dev#mnli``, ``snli:test``."""
        if self.name:
            return self.name
        if self.is_file:
            path = Path(self.path)
            stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
            short = f"{path.parent.name}/{stem}" if path.parent.name else stem
            return f"{short}#{self.field}" if self.field else short
        short = f"{self.path}/{self.config}" if self.config else self.path
        return f"{short}:{self.split}" if self.split else short


SourceLike: TypeAlias = Source | str | Mapping[str, Any]


def load_nli(source: SourceLike) -> datasets.Dataset:
    """Load one corpus with the columns ``premise``, ``hypothesis`` and ``label`` (an index into :data:`LABELS`).

    Labels are taken by name wherever there are names (words, or a hub dataset's ``ClassLabel``); integers without
    names are read in the order of :data:`LABELS`, which is that of GLUE, SNLI, MNLI and ANLI, with a warning that says
    so. Examples that are marked as unlabelled (-1 or "-") are dropped and counted in the log. A .tsv file is read
    without quoting, as GLUE's are written; a .csv file with.

    Raises ``FileNotFoundError`` for a missing file; ``ValueError`` for everything else that cannot be read as NLI.
    """
    source = Source.parse(source)
    where = f"source {source.display_name!r} ({source.path})"
    raw = _read_file(source, where) if source.is_file else _read_hub(source, where)
    columns = {"premise": source.premise, "hypothesis": source.hypothesis, "label": source.label}
    nested = source.path.endswith(_JSON_DOCUMENT) and source.field is None
    hint = "; for a list nested in the document set field" if nested else ""
    for argument, column in columns.items():
        if column not in raw.column_names:
            raise ValueError(f"{where} has no field {argument}={column!r}; it has {raw.column_names}{hint}")
    feature = raw.features[source.label]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if source.labels is None and names is None and any(fold(label).isdigit() for label in raw[:10][source.label]):
        logger.warning(
            "%s: integer labels without names, read as %s; set labels to be sure", where, dict(enumerate(LABELS))
        )
    dataset = raw.map(
        _harmonise,
        batched=True,
        with_indices=True,
        fn_kwargs={"columns": columns, "table": label_table(source.labels, names), "names": names, "where": where},
        remove_columns=raw.column_names,
        features=FEATURES,
        desc=f"Reading {source.display_name}",
    )
    if dropped := len(raw) - len(dataset):
        logger.info("%s: dropped %d of %d examples, which are unlabelled", where, dropped, len(raw))
    if not len(dataset):
        raise ValueError(f"{where} is empty: none of its {len(raw)} examples is labelled; check path, split and label")
    if source.seed is not None:
        dataset = dataset.shuffle(seed=source.seed)
    if source.limit is not None:
        dataset = dataset.select(range(min(source.limit, len(dataset))))
    return dataset if source.repeat == 1 else datasets.concatenate_datasets([dataset] * source.repeat)


def load_many(sources: Iterable[SourceLike]) -> dict[str, datasets.Dataset]:
    """Load corpora for evaluation, each under its name. Raises ``ValueError`` where two have the same name."""
    parsed: dict[str, Source] = {}
    for source in map(Source.parse, sources):
        if (name := source.display_name) in parsed:
            paths = f"{parsed[name].path!r} and {source.path!r}"
            raise ValueError(
                f"sources {paths} are both named {name!r}; give one another name, as in other={source.path}"
            )
        parsed[name] = source
    return {name: load_nli(source) for name, source in parsed.items()}


def concatenate(sources: Iterable[SourceLike]) -> datasets.Dataset:
    """Load corpora for training and join them in the given order. Raises ``ValueError`` where there are none."""
    loaded = [load_nli(source) for source in sources]
    if not loaded:
        raise ValueError("sources is empty; give at least one, as in data/train.jsonl or snli:train")
    return datasets.concatenate_datasets(loaded)


def _harmonise(
    batch: dict[str, list[Any]],
    indices: list[int],
    columns: dict[str, str],
    table: dict[str, int],
    names: list[str] | None,
    where: str,
) -> dict[str, list[Any]]:
    """One batch in our form, without its unlabelled examples."""
    kept: dict[str, list[Any]] = {key: [] for key in columns}
    for index, premise, hypothesis, raw in zip(indices, *(batch[column] for column in columns.values()), strict=True):
        folded = fold(raw)
        if folded not in table and folded in UNLABELLED:
            continue
        if folded not in table:
            shown = f"{raw!r} (named {names[raw]!r})" if names and isinstance(raw, int) else repr(raw)
            raise ValueError(
                f"{where}: example {index + 1} has the unknown label {shown} in {columns['label']!r}; known are "
                f"{sorted(table)}; set labels to map it to {', '.join(LABELS)}"
            )
        for argument, text in (("premise", premise), ("hypothesis", hypothesis)):
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: example {index + 1} has {argument} {text!r}, which is no text; correct the data"
                )
            kept[argument].append(text)
        kept["label"].append(table[folded])
    return kept


def _read_hub(source: Source, where: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_dataset(source.path, source.config, split=source.split)
    except Exception as error:  # whatever the hub, the network or a loader raises
        raise ValueError(
            f"{where} is no file ending in {', '.join(_ENDINGS)}, and datasets.load_dataset({source.path!r}, "
            f"{source.config!r}, split={source.split!r}) failed: {error}"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            raise ValueError(
                f"{where} has the splits {list(loaded)}; choose one, as in {source.path}:{next(iter(loaded))}"
            )
        loaded = next(iter(loaded.values()))
    return loaded


def _read_file(source: Source, where: str) -> datasets.Dataset:
    if not Path(source.path).is_file():
        raise FileNotFoundError(f"{where} does not exist; path is relative to {Path.cwd()}")
    if not source.path.endswith(_ENDINGS):
        raise ValueError(f"{where} has an unsupported ending; allowed are {', '.join(_ENDINGS)}; convert or rename it")
    options: dict[str, Any] = {"field": source.field}
    kind = "json" if ".json" in Path(source.path).name else "csv"
    if kind == "csv":
        # Text stays text, or a hypothesis "null" is missing and "007" is 7; index_col, or longer rows shift columns.
        texts = dict.fromkeys((source.premise, source.hypothesis, source.label), str)
        options = {"converters": texts, "keep_default_na": False, "index_col": False}
        if source.path.endswith((".tsv", ".tsv.gz")):
            options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    try:
        return datasets.load_dataset(kind, data_files=source.path, split="train", **options)
    except Exception as error:  # the loaders have no common error
        cause = error.__cause__ or error
        if isinstance(cause, KeyError) and source.field is not None:
            opened = gzip.open if source.path.endswith(".gz") else open
            with opened(source.path, "rt", encoding="utf-8") as file:
                there = list(json.load(file))
            raise ValueError(f"{where} has no field={source.field!r}; it has {there}") from error
        if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
            raise ValueError(f"{where} is empty; check path and field") from error
        raise ValueError(f"{where} cannot be read as {kind}: {str(cause).strip()}; correct the file") from error
