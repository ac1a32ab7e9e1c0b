"""Rows of the files people have; whatever is wrong with one is said with the line it is in."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["ENDINGS", "Row", "read_document", "read_rows"]

logger = logging.getLogger(__name__)

ENDINGS = tuple(ending + zipped for ending in (".jsonl", ".json", ".tsv", ".csv") for zipped in ("", ".gz"))


class Row(NamedTuple):
    """One example as it stands in a file, and where: ``line 7312``, or ``example 12`` of a JSON list."""

    place: str
    cells: dict[str, Any]


def read_rows(path: str, where: str, field: str | None = None, header: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a .jsonl, .json, .tsv or .csv file, each also with .gz, in order and as they are.

    A .tsv file is read without quoting, as GLUE's are written; a .csv file with. Cells of tables stay text; cells that
    a line lacks are left out. Blank lines are skipped. Cells beyond the header are an error in a .csv file, where a
    comma without quotes has moved the others; in a .tsv file they are dropped, with a warning that counts the lines.

    Args:
        path: the file.
        where: what errors call it.
        field: the key of a list nested in a JSON document.
        header: column names of a table that has none: used where the first line has as many cells and is none of it.

    Raises:
        ValueError: naming the line, for anything that cannot be read.
    """
    name = path.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _json_lines(path, where)
    if name.endswith(".json"):
        return _listed(path, where, field)
    return _table(path, where, header, tabs=name.endswith(".tsv"))


def read_document(path: str, where: str) -> Any:
    """A whole JSON document. Raises ``ValueError`` naming line and column where it is none."""
    try:
        return json.loads("".join(text for _, text in _lines(path, where)))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: line {error.lineno}, column {error.colno} is no JSON: {error.msg}; correct the file"
        ) from error


def _lines(path: str, where: str) -> Iterator[tuple[int, str]]:
    number = 0
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        try:
            for number, raw in enumerate(file, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{where}: line {number} is not UTF-8: its byte {error.start + 1} is "
                        f"0x{raw[error.start]:02x}; convert the file to UTF-8"
                    ) from error
                yield number, text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{where}: the gzip stream breaks off after line {number} ({error}); the file is truncated or damaged: "
                "copy it again"
            ) from error


def _json_lines(path: str, where: str) -> Iterator[Row]:
    for number, text in _lines(path, where):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: line {number}, column {error.colno} is no JSON: {error.msg}; correct the file"
            ) from error
        yield Row(f"line {number}", _mapping(cells, where, f"line {number}"))


def _listed(path: str, where: str, field: str | None) -> Iterator[Row]:
    try:
        document = read_document(path, where)
    except ValueError as error:
        # Many a .json file holds a document a line.
        if field is not None or not isinstance(error.__cause__, json.JSONDecodeError) or "Extra" not in str(error):
            raise
        yield from _json_lines(path, where)
        return
    if field is not None:
        if not isinstance(document, dict) or field not in document:
            there = list(document) if isinstance(document, dict) else f"a {type(document).__name__}"
            raise ValueError(f"{where} has no field={field!r}; it has {there}")
        document = document[field]
    for number, cells in enumerate(document if isinstance(document, list) else [document], 1):
        yield Row(f"example {number}", _mapping(cells, where, f"example {number}"))


def _mapping(cells: Any, where: str, place: str) -> dict[str, Any]:
    if not isinstance(cells, dict):
        raise ValueError(f"{where}: {place} holds a {type(cells).__name__}; it must be an object with named fields")
    return cells


def _table(path: str, where: str, header: Sequence[str] | None, tabs: bool) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))  # the module's own is 131,072 characters a cell
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader((text for _, text in _lines(path, where)), **style)
    names: Sequence[str] | None = None
    longer: list[int] = []
    try:
        for cells in reader:
            if not any(cells):
                continue
            if names is None:
                bare = header is not None and len(cells) == len(header) and not set(cells) & set(header)
                names = header if bare else _header(cells, where)
                if not bare:
                    continue
            assert names is not None
            if len(cells) > len(names):
                if not tabs:
                    raise ValueError(
                        f"{where}: line {reader.line_num} has {len(cells)} cells and the header {len(names)}; put "
                        "texts that hold a comma into quotes"
                    )
                longer.append(reader.line_num)
            yield Row(f"line {reader.line_num}", dict(zip(names, cells, strict=False)))
    except csv.Error as error:
        raise ValueError(f"{where}: line {reader.line_num} cannot be read: {error}; correct the file") from error
    if longer:
        logger.warning(
            "%s: %d lines have more cells than the header, the first of them line %d; what is beyond it is not read",
            where,
            len(longer),
            longer[0],
        )


def _header(cells: Sequence[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{where}: the header has {twice[0]!r} twice; give each column a name of its own")
    return names
