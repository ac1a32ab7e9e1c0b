"""Files that commands write: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Written beside the target, then renamed, so that a reader never meets half a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, content: Any) -> None:
    """``content`` as indented JSON, by :func:`write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")
