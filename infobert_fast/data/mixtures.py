"""The published training mixes and the benchmarks' corpora by one name each, from the hub or from a folder of files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from infobert_fast.data.files import ENDINGS
from infobert_fast.data.source import FeverOrder, Source, SourceLike
from infobert_fast.data.tasks import GLUE, QUESTION_ANSWERING

__all__ = ["CORPORA", "MIXTURES", "expand", "find", "task_of"]

# One corpus of a mix: what the hub calls it, and where its files lie in the folders that people unpack, without ending.
CORPORA: dict[str, tuple[Source, tuple[str, ...]]] = {
    "snli": (
        Source("stanfordnlp/snli", split="train"),
        ("snli/train", "snli_1.0/snli_1.0_train", "SNLI/train"),
    ),
    "fever": (
        # The hub has the claim as premise and the evidence as hypothesis.
        Source("pietrolesci/nli_fever", split="train"),
        ("fever/train", "nli_fever/train_fitems", "fever_nli/train"),
    ),
    "mnli": (
        Source("nyu-mll/multi_nli", split="train"),
        ("mnli/train", "multinli_1.0/multinli_1.0_train", "MNLI/train"),
    ),
    **{
        f"anli-r{number}": (
            Source("facebook/anli", split=f"train_r{number}"),
            (f"anli/train_r{number}", f"anli_v1.0/R{number}/train", f"anli/R{number}/train"),
        )
        for number in (1, 2, 3)
    },
}
# anli-full: 1.31 M pairs, the InfoBERT authors' order.
MIXTURES = {
    "anli-full": ("snli", "fever", "mnli", "anli-r1", "anli-r2", "anli-r3"),
    "anli-part": ("snli", "mnli"),
}
# GLUE tasks whose validation split has another name.
_VALIDATION = {"mnli": "validation_matched"}


def find(folder: str | Path, candidates: Iterable[str]) -> Path | None:
    """The first of the candidates that lies in the folder, with any ending that we read."""
    for candidate in candidates:
        for ending in ENDINGS:
            if (path := Path(folder, candidate + ending)).is_file():
                return path
    return None


def expand(
    sources: Sequence[SourceLike],
    *,
    data_dir: str | None = None,
    fever_order: FeverOrder = "reference",
    anli_repeat: Sequence[int] = (1, 1, 1),
    evaluation: bool = False,
) -> list[Source]:
    """Sources with each mix in place of its name, and the hub's address in place of ``glue/TASK``.

    A ``glue/TASK`` without a split is the training split; for ``evaluation`` the labelled one that is not.

    ``anli-full`` is SNLI, FEVER-NLI, MultiNLI and ANLI's three rounds; ``anli-part`` SNLI and MultiNLI. With
    ``data_dir`` a mix is read from that folder's files. ``fever_order`` pairs FEVER as (claim, evidence), as the
    InfoBERT authors do ("reference"), or as (evidence, claim), as the ANLI authors do ("anli"); it holds for every
    source that is not a mapping which says otherwise. ``anli_repeat`` repeats the rounds: 1, 1, 1 (InfoBERT), or 10,
    20, 10 (the ANLI authors).

    Raises:
        ValueError: for another number of repeats, and for a mix, which is made for training, in an ``evaluation``.
        FileNotFoundError: for a corpus of a mix that ``data_dir`` lacks, naming the files that were looked for.
    """
    repeats = [int(count) for count in anli_repeat]
    if len(repeats) != 3 or min(repeats) < 1:
        raise ValueError(
            f"`anli_repeat` was {list(anli_repeat)}; give three whole numbers of at least 1, one a round: 1 1 1 as "
            "InfoBERT, or 10 20 10 as the ANLI authors"
        )
    expanded: list[Source] = []
    for source in sources:
        if not isinstance(source, str) or source not in MIXTURES:
            parsed = _glue(Source.parse(source), evaluation)
            given = isinstance(source, Source) or (not isinstance(source, str) and "fever_order" in source)
            expanded.append(parsed if given else dataclasses.replace(parsed, fever_order=fever_order))
            continue
        if evaluation:
            raise ValueError(f"{source!r} is a mix to train on; evaluate on test sets, such as facebook/anli:test_r1")
        for name in MIXTURES[source]:
            part, files = CORPORA[name]
            if data_dir is not None:
                if (path := find(data_dir, files)) is None:
                    raise FileNotFoundError(
                        f"`data_dir` {data_dir!r} lacks the corpus {name!r} of {source!r}; it may be any of "
                        f"{', '.join(files)}, ending in {', '.join(ENDINGS)}"
                    )
                part = Source(str(path))
            elif name == "fever" and fever_order == "anli":
                part = dataclasses.replace(part, premise="hypothesis", hypothesis="premise")
            repeat = repeats[int(name[-1]) - 1] if name.startswith("anli-r") else 1
            expanded.append(dataclasses.replace(part, name=name, repeat=repeat, fever_order=fever_order))
    return expanded


def task_of(sources: Sequence[SourceLike]) -> str:
    """The task that sources name, or speak of by their names: ``glue/TASK``, SQuAD on the hub; else ``nli``."""
    for source in map(Source.parse, sources):
        group, _, name = source.path.partition("/")
        if source.task is not None:
            return source.task
        if group == "glue" and name in GLUE:
            return name
        if source.path == "nyu-mll/glue" and source.config in GLUE:
            return str(source.config)
        if source.path.startswith("rajpurkar/squad"):
            return QUESTION_ANSWERING
    return "nli"


def _glue(source: Source, evaluation: bool) -> Source:
    """``glue/sst2:train`` with the hub's address."""
    group, _, task = source.path.partition("/")
    if group != "glue" or task not in GLUE or source.is_file:
        return source
    split = source.split or (_VALIDATION.get(task, "validation") if evaluation else "train")
    name = source.name or f"glue/{task}:{split}"
    return dataclasses.replace(source, path="nyu-mll/glue", config=task, split=split, name=name)
