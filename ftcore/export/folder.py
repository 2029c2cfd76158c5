"""Writes the export folder: it is staged, then moved; only an earlier export may be replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftcore.errors import Problem, RunError, UsageError, listed
from ftcore.utils.files import staged_folder, write_json
from ftcore.utils.hashing import file_hash

MANIFEST = "ft_export.json"
FORMAT = 1
_MARGIN = 1 << 24
"""Space for other files than weights, in bytes."""


def check_folder(folder: Path, where: str) -> None:
    """Raises an error for a folder with files that no export wrote.

    Raises:
        UsageError: with these files.
    """
    if not folder.exists():
        return
    hint = "write another export_dir"
    if not folder.is_dir():
        raise UsageError(Problem(f"export_dir {folder} is a file", where, hint))
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not present:
        return
    if (written := _written(folder)) is None:
        raise UsageError(Problem(f"export_dir {folder} contains files that ft export did not write", where, hint))
    if strange := sorted(present - written):
        reason = f"export_dir {folder} contains files that ft export did not write: {listed(strange, 3)}"
        raise UsageError(Problem(reason, where, hint))


def _written(folder: Path) -> set[str] | None:
    """The files of the existing export; None if there is none."""
    try:
        return {MANIFEST, *json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_space(folder: Path, needed: int) -> None:
    """Raises an error if the disk is too full.

    Raises:
        RunError: with the required and free bytes.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _MARGIN:
        raise RunError(f"export_dir {folder} needs {needed + _MARGIN:,} bytes, and {free:,} are free")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A staging folder that replaces ``folder`` at the end, unless an exception is raised."""
    try:
        with staged_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        raise RunError(f"the export could not be written to {folder.resolve()}: {error}") from error


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Writes ``ft_export.json``: the facts, and size and sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **facts, "files": listed})
