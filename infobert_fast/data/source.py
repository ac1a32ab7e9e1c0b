"""Where a corpus comes from: a file or a dataset of the hub, and how its columns and labels are to be read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
import yaml

from infobert_fast import checks
from infobert_fast.data.cache import file_key
from infobert_fast.data.files import ENDINGS
from infobert_fast.data.settings import read_yaml
from infobert_fast.data.tasks import TASK_NAMES

__all__ = ["FEVER_ORDERS", "FeverOrder", "Source", "SourceLike", "check_file", "draw", "load_hub", "source_key", "take"]

FeverOrder = Literal["reference", "anli"]
FEVER_ORDERS = ("reference", "anli")

_JSON_DOCUMENT = (".json", ".json.gz")
_SHORTHAND = re.compile(
    r"(?:(?P<name>[^=/:#]+)=)?"  # no slash: `./lr=1/dev.jsonl` is a path
    r"(?P<path>.+?)"
    r"(?:(?:(?<=\.json)|(?<=\.json\.gz))#(?P<field>[^#/]+))?"  # only a JSON document has fields
    r"(?::(?P<split>\w+(?:\[[^\[\]]*\])?))?"  # `train`, `train[:1000]`; no dot: `a:b.jsonl` is a path
)


@dataclass(frozen=True)
class Source:
    """Where one corpus comes from and how its columns and labels are to be read.

    ``path`` is a file ending in .jsonl, .json, .tsv or .csv (each also with .gz), or the name (or folder) of a dataset
    that ``datasets.load_dataset`` knows, with its ``config``, ``revision`` and ``split``. ``field`` is the key of a
    list nested in a JSON document. ``premise``, ``hypothesis`` and ``label`` name the columns of the first text, the
    second and the label; those left out are found by the names that the published corpora use
    (:attr:`infobert_fast.data.tasks.Task.layouts`). ``fever_order`` says how FEVER's columns are paired where they are
    found so: "reference" is (claim, evidence), "anli" (evidence, claim). ``labels`` maps the raw labels to the task's;
    a sequence gives the meaning of the integers 0, 1, 2. ``task`` says what the corpus is for where that is not the
    task of the whole: in one evaluation some sets may tell three relations apart and others two. ``limit`` keeps the
    first labelled examples, after a shuffle where ``seed`` is given; ``repeat`` then repeats them all. ``name`` is what
    results are reported under.

    Raises ``ValueError`` for a combination that means nothing.
    """

    path: str
    name: str | None = None
    split: str | None = None
    config: str | None = None
    field: str | None = None
    revision: str | None = None
    premise: str | None = None
    hypothesis: str | None = None
    label: str | None = None
    labels: Mapping[Any, str] | Sequence[str] | None = None
    limit: int | None = None
    seed: int | None = None
    repeat: int = 1
    fever_order: FeverOrder = "reference"
    task: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f"path must be a file or the name of a dataset, not {self.path!r}")
        for key, count in (("limit", self.limit), ("repeat", self.repeat)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{key} must be a whole number of at least 1, not {count!r} (source {self.path!r})")
        if self.field is not None and not self.path.endswith(_JSON_DOCUMENT):
            raise ValueError(f"field={self.field!r} needs a .json document, but path is {self.path!r}; leave it out")
        for key, text in (("split", self.split), ("config", self.config), ("revision", self.revision)):
            if text is not None and self.is_file:
                raise ValueError(
                    f"{key}={text!r} is for hub datasets, but path is the file {self.path!r}; leave it out"
                )
        if self.labels is not None and (
            isinstance(self.labels, str) or not isinstance(self.labels, Mapping | Sequence)
        ):
            raise ValueError(
                f"labels must be a mapping or a sequence, not {self.labels!r}: {{'SUPPORTS': 'entailment', ...}}, or "
                "['entailment', 'neutral', 'contradiction'] for the meaning of 0, 1, 2"
            )
        checks.choice("fever_order", self.fever_order, FEVER_ORDERS)
        if self.task is not None:
            checks.choice("task", self.task, TASK_NAMES)

    @classmethod
    def parse(cls, source: Source | str | Mapping[str, Any]) -> Source:
        """Read the shorthand ``[name=]path[#field][:split]``, or the mapping of a YAML file, also as one text.

        ``snli:test``, ``data/dev.jsonl``, ``adv=advglue/dev.json#mnli``. Whatever the shorthand cannot say without
        ambiguity (a name with a slash, columns, labels) is said by the mapping, whose keys are this class's fields:
        ``{path: hans.jsonl, task: nli2}``.

        Raises ``ValueError`` for text that is neither and for unknown keys.
        """
        if isinstance(source, Source):
            return source
        if isinstance(source, str) and source.lstrip().startswith("{"):
            try:
                source = read_yaml(source)
            except yaml.YAMLError as error:
                raise ValueError(
                    f"source {source!r} is no mapping as YAML writes one ({{path: FILE, ...}}): {error}"
                ) from error
        if isinstance(source, str):
            match = _SHORTHAND.fullmatch(source.strip())
            if match is None or ("#" in match["path"] and not match["path"].endswith(ENDINGS)):
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
        return self.path.endswith(ENDINGS) or Path(self.path).is_file()

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

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"source {self.display_name!r} ({self.path})"

    def refuse(self, reason: str, *names: str) -> None:
        """Raise ``ValueError`` where one of these fields is set, which would have no effect."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{self.where} has {name}={value!r}; {reason}: leave it out")


SourceLike: TypeAlias = Source | str | Mapping[str, Any]


def source_key(source: Source) -> list[Any]:
    """What the examples of a file depend on besides the task; ``limit``, ``seed`` and ``repeat`` come after."""
    labels = list(source.labels.items()) if isinstance(source.labels, Mapping) else source.labels
    columns = [source.field, source.premise, source.hypothesis, source.label, source.fever_order]
    return [file_key(source.path), Path(source.path).name.partition(".")[2], columns, repr(labels)]


def check_file(source: Source) -> None:
    """Raise ``FileNotFoundError`` for a missing file, ``ValueError`` for an ending that we do not read."""
    if not Path(source.path).is_file():
        raise FileNotFoundError(f"{source.where} does not exist; path is relative to {Path.cwd()}")
    if not source.path.endswith(ENDINGS):
        raise ValueError(
            f"{source.where} has an unsupported ending; allowed are {', '.join(ENDINGS)}; convert or rename it"
        )


def load_hub(source: Source, streaming: bool = False) -> Any:
    """The raw dataset of the hub or of a folder: a ``Dataset``, or an ``IterableDataset`` where ``streaming``.

    Raises ``ValueError`` for whatever goes wrong, and for several splits where none was chosen.
    """
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
    if streaming:
        options["streaming"] = True
    try:
        loaded = datasets.load_dataset(source.path, source.config, split=source.split, **options)
    except Exception as error:  # whatever the hub, the network or a loader raises
        raise ValueError(
            f"{source.where} is no file ending in {', '.join(ENDINGS)}, and datasets.load_dataset({source.path!r}, "
            f"{source.config!r}, split={source.split!r}) failed: {error}"
        ) from error
    if isinstance(loaded, dict):
        if len(loaded) != 1:
            raise ValueError(
                f"{source.where} has the splits {list(loaded)}; choose one, as in {source.path}:{next(iter(loaded))}"
            )
        loaded = next(iter(loaded.values()))
    return loaded


def draw(dataset: datasets.Dataset, limit: int, groups: Sequence[str] | None = None) -> datasets.Dataset:
    """At most ``limit`` examples, drawn at random: the same ones in every call, in the dataset's order.

    Where ``groups`` has a name for each example, ``limit`` counts groups, which are drawn whole.
    """
    of_row = list(range(len(dataset))) if groups is None else groups
    names = list(dict.fromkeys(of_row))
    chosen = {names[i] for i in np.random.default_rng(0).permutation(len(names))[:limit]}
    return dataset.select([row for row, name in enumerate(of_row) if name in chosen])


def take(dataset: datasets.Dataset, source: Source) -> datasets.Dataset:
    """The part of the examples that the source asks for: shuffled, limited, repeated."""
    if source.seed is not None:
        dataset = dataset.shuffle(seed=source.seed)
    if source.limit is not None:
        dataset = dataset.select(range(min(source.limit, len(dataset))))
    return dataset if source.repeat == 1 else datasets.concatenate_datasets([dataset] * source.repeat)
