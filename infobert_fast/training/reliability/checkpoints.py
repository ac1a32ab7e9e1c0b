"""Whole checkpoints: written aside, sealed with a manifest and renamed, so that a kill leaves a whole one or none.

A checkpoint is built in ``tmp-checkpoint-N/checkpoint-N``. When every rank has written, its files are flushed to the
disk, their sizes and SHA-256 are listed in ``manifest.json`` with the settings that the run's results depend on, and
the folder is renamed to ``checkpoint-N``. A folder without a manifest, or whose files differ from it, is never resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "MANIFEST",
    "fault",
    "newest",
    "publish",
    "read_manifest",
    "replacing",
    "rotate",
    "staging",
    "sweep",
]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PREFIX = "tmp-"  # of everything unfinished


def staging(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step is built, under its own name."""
    return output_dir / f"{PREFIX}checkpoint-{step}"


def publish(temporary: Path, record: Mapping[str, Any]) -> Path:
    """Seal ``tmp-checkpoint-N/checkpoint-N`` and rename it to ``checkpoint-N`` beside its parent.

    Args:
        temporary: the folder that :func:`staging` named, with everything written into it.
        record: goes into the manifest, see :mod:`infobert_fast.training.resume`.

    Raises:
        OSError: where the disk refuses; the temporary folder is left as it was.
    """
    (folder,) = temporary.iterdir()
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {
                "size": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    _write(folder / MANIFEST, json.dumps({"written": time.time_ns(), **record, "files": files}, indent=1))
    for directory in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(directory)
    final = temporary.parent / folder.name
    if final.exists():  # of an earlier run; should a kill come between the renames, sweep() finishes the second
        _discard(final)
    folder.rename(final)
    _flush(final.parent)
    shutil.rmtree(temporary)
    return final


def fault(folder: str | Path) -> str | None:
    """Why a checkpoint is not whole; None if it is. Reads all of its files."""
    folder = Path(folder)
    try:
        listed = read_manifest(folder)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"the content of {name} is not what was written"
    return None


def newest(output_dir: Path) -> Path | None:
    """The checkpoint written last among the whole ones that can be resumed from; None if there is none."""
    for folder in reversed(_checkpoints(output_dir)):
        reason = fault(folder)
        if reason is None and not read_manifest(folder).get("resumable", True):
            reason = "it holds the model alone (save_only_model)"
        if reason is None:
            return folder
        logger.warning("%s is passed over: %s", folder, reason)
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What :func:`publish` recorded."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def rotate(output_dir: Path, limit: int | None, keep: set[Path]) -> None:
    """Delete the checkpoints written first until ``limit`` are left, and none of ``keep``. Call it when the newest is
    whole, and name that in ``keep``.
    """
    if limit is None or limit <= 0:
        return
    found = _checkpoints(output_dir)
    kept = {path.resolve() for path in keep}
    spare = [folder for folder in found if folder.resolve() not in kept]
    for folder in spare[: max(0, len(found) - max(limit, len(kept)))]:
        _discard(folder)


def sweep(output_dir: Path) -> None:
    """Finish or remove what a killed run left: a sealed temporary becomes a checkpoint, anything else goes."""
    for temporary in output_dir.glob(f"{PREFIX}checkpoint-*"):
        for folder in temporary.glob("checkpoint-*"):
            final = output_dir / folder.name
            if not final.exists() and fault(folder) is None:
                folder.rename(final)
                _flush(output_dir)
        shutil.rmtree(temporary)
    shutil.rmtree(output_dir / f"{PREFIX}model", ignore_errors=True)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of ``folder`` at the end, each whole, the weights last; on an error
    it goes and ``folder`` stays as it was. Weights of ``folder`` that are not written again are removed.
    """
    temporary = folder / f"{PREFIX}model"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        written = _files(temporary)
        for path in written:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path in sorted(written, key=lambda path: ".safetensors" in path.name):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        names = {path.name for path in written}
        if any(".safetensors" in name for name in names):
            for path in folder.glob("model*.safetensors*"):
                if path.name not in names:
                    path.unlink()
        _flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a folder in the order of writing; those without a readable manifest first."""

    def written(folder: Path) -> tuple[int, int]:
        try:
            when = int(read_manifest(folder)["written"])
        except (OSError, ValueError, KeyError):
            when = 0
        return when, int(folder.name.split("-")[1])

    found = (path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted((path for path in found if path.is_dir()), key=written)


def _discard(folder: Path) -> None:
    """Delete a checkpoint; a kill in the midst leaves nothing that looks like one."""
    doomed = folder.with_name(f"{PREFIX}{folder.name}-deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(directory: Path) -> None:
    """Make the names in a directory last; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
