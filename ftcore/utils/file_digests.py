"""sha256 of files, remembered: data that has not changed is not read again to know that it has not."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ftcore.utils import hashing
from ftcore.utils.content_store import FILE_DIGESTS, Entry
from ftcore.utils.hashing import contents_sha256

_RECENT_NS = 2_000_000_000
"""A file changed so recently may change again within one tick of its clock, and look the same (git's racy index)."""


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal.

    Remembered with size, inode, mtime and ctime. Nobody can set ctime, so any write is seen, also one that keeps the
    size and puts mtime back. 1.2 GB are hashed in a second; remembered it takes 0.2 ms.

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
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            entry.write(os.fsdecode(path), {"stamp": stamp, "sha256": digest})
    return digest


def stamp_of(path: Path) -> list[int]:
    """Device, inode, size, mtime and ctime: any write to a file changes it.

    Raises:
        OSError: no such file.
    """
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
