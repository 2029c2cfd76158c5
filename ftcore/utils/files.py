"""Atomic writes: files and folders are written under a temporary name, flushed to the disk and renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

_numbers = count()


def staging_path(path: Path) -> Path:
    """A temporary path in the same folder, to be renamed to ``path``: ``.tmp-PID-N-NAME``, new at each call.

    `ftcore.utils.ownership.is_staged` recognises such names, so that a later run deletes files of a killed one.
    """
    return path.with_name(f".tmp-{os.getpid()}-{next(_numbers)}-{path.name}")


def leftovers(path: Path) -> list[Path]:
    """Staged files and folders of ``path`` that are there, such as a killed process leaves.

    Hold what locks ``path`` before you delete them: another process may be writing one.
    """
    name = re.compile(rf"\.tmp-\d+-\d+-{re.escape(path.name)}")
    present = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted(one for one in present if name.fullmatch(one.name))


def flush(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flushes every file below a folder, then the folders, then the folder itself."""
    below = sorted(folder.rglob("*"))
    for path in (*filter(Path.is_file, below), *filter(Path.is_dir, below), folder):
        flush(path)


@contextmanager
def staged_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to; it is renamed to ``path`` on exit, or deleted after an error.

    Args:
        path: path of the file, in an existing folder.
        durable: flush before the rename, so that a power cut leaves the old file or the new one. False saves the
            10 ms of a flush, for a cache whose reader detects a damaged file.
    """
    staged = staging_path(path)
    try:
        yield staged
        if durable:
            flush(staged)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(folder: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty temporary folder to write into; it replaces ``folder`` on exit, or is deleted after an error.

    Args:
        folder: replaced if it exists; its parents are created.
        durable: flush every file before the rename.
    """
    folder = folder.resolve()
    staged = staging_path(folder)
    try:
        staged.mkdir(parents=True)
        yield staged
        if durable:
            flush_tree(staged)
        replace_folder(staged, folder)
        if durable:
            flush(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_folder(staged: Path, folder: Path) -> None:
    """Renames ``staged`` to ``folder``; an existing folder is renamed first and deleted last.

    Raises:
        OSError: it cannot be renamed; the existing folder is restored.
    """
    earlier = staging_path(folder)
    if folder.is_dir():
        folder.rename(earlier)
    try:
        staged.rename(folder)
    except OSError:
        if earlier.is_dir():
            earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Writes a file atomically: readers find the earlier content or the new one.

    Args:
        path: path of the file, in an existing folder.
        content: text is written as UTF-8.
        durable: as for `staged_file`.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged.
    """
    with staged_file(path, durable=durable) as staged:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes `as_json` of a value with `write_whole`."""
    write_whole(path, as_json(value))


def as_json(value: Any) -> str:
    """The value as indented JSON with a final newline. Sets become sorted lists, and other types their text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)
