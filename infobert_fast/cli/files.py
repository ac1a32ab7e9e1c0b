"""Files that commands write: whole or not at all."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infobert_fast import checks
from infobert_fast.aside import write_text

__all__ = ["check_picture", "file_stems", "write_json", "write_text"]


def check_picture(name: str, path: Path) -> None:
    """Refuse a picture that cannot be drawn, for its name, its folder or want of the library, before there is any work.

    Raises:
        ValueError, OSError: naming the argument.
    """
    if path.suffix != ".png":
        raise ValueError(f"`{name}` was {path}; it must end in .png (a picture)")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"`{name}` was {path}; pictures need matplotlib: pip install 'infobert-fast[plot]'")
    checks.writable(name, path)


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """By each set's name that of its file, without ending. Raises ``ValueError`` where two sets would share one."""
    found: dict[str, str] = {}
    for name in names:
        stem = name.replace("/", "_").replace(":", "_")
        if other := next((key for key in found if found[key] == stem), None):
            raise ValueError(f"{other!r} and {name!r} would be written to one file, {stem}: name one, as in other=PATH")
        found[name] = stem
    return found


def write_json(path: Path, content: Any) -> None:
    """``content`` as indented JSON, by :func:`write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")
