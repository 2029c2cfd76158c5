"""sha256 of files, cached: an unchanged file is not read again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ftcore.utils import hashing
from ftcore.utils.content_store import FILE_DIGESTS, Entry
from ftcore.utils.hashing import contents_sha256

_RECENT_NS = 2_000_000_000
"""A more recently changed file may change again without a new timestamp (as in git's racy index)."""


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal.

    The digest is cached with size, inode, mtime and ctime. ctime cannot be set, so every write is detected, even one
    that keeps the size and restores mtime. Hashing takes a second per 1.2 GB, a cached digest 0.2 ms.

    Raises:
        OSError: the file cannot be read.
    """
    entry = Entry.of(FILE_DIGESTS, os.fsencode(path.resolve()).hex(), (hashing,))
    stamp = stamp_of(path)
    known = entry.read_value()
    if isinstance(known, dict) and known.get("stamp") == stamp:
        return str(known["sha256"])
    digest = contents_sha256(path)
    if time.time_ns() - stamp[-1] > _RECENT_NS and stamp_of(path) == stamp:
        with suppress(OSError):  # without a writable cache the file is hashed again next time
            entry.write(os.fsdecode(path), {"stamp": stamp, "sha256": digest})
    return digest


def stamp_of(path: Path) -> list[int]:
    """Device, inode, size, mtime and ctime. Every write to a file changes them.

    Raises:
        OSError: the file does not exist.
    """
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
