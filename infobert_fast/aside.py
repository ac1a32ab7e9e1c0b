"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["aside", "write_text"]


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """The path to write to, of the same ending; renamed to ``path`` at the end, removed where the writing fails.

    Folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A reader never meets half of the file."""
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")
