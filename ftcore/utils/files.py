"""Files and folders that are whole or not there: written beside, flushed to the disk, and renamed into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

_numbers = count()


def staging_path(path: Path) -> Path:
    """Where to write what is renamed to ``path`` later: ``.tmp-PID-N-NAME`` beside it, another one at each call.

    `ftcore.utils.ownership.is_staged` knows such names, so that a later run clears away what a killed one left.
    """
    return path.with_name(f".tmp-{os.getpid()}-{next(_numbers)}-{path.name}")


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
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
    """A path beside ``path`` to write to; it is renamed to ``path`` on leaving, or deleted after an error.

    Args:
        path: of the file; its folder is there.
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
    """An empty folder beside ``folder`` to write into; it takes its place on leaving, or is deleted after an error.

    Args:
        folder: is replaced where it exists; its parents are made.
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
    """Renames ``staged`` to ``folder``; what was there is renamed first and deleted last.

    Raises:
        OSError: it cannot be renamed; what was there is there again.
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
    """Writes a file so that readers find the earlier content or the new one, never a part.

    Args:
        path: of the file; its folder is there.
        content: text is written as UTF-8.
        durable: as for `staged_file`.

    Raises:
        OSError: it cannot be written; the earlier file is as it was.
    """
    with staged_file(path, durable=durable) as staged:
        staged.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes `as_json` of a value with `write_whole`."""
    write_whole(path, as_json(value))


def as_json(value: Any) -> str:
    """The value as indented JSON that ends in a newline: sets become sorted lists, what JSON does not know its text."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)
