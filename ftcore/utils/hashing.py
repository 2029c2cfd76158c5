"""sha256 of files, remembered: data that has not changed is not read again to know that it has not."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from ftcore.utils.cache_dir import cache_root

_RECENT_NS = 2_000_000_000
"""A file changed so recently may change again within one tick of its clock, and look the same (git's racy index)."""
_PIECES, _PIECE = 16, 1 << 16


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal.

    Remembered with size, inode, mtime and ctime. Nobody can set ctime, so any write is seen, also one that keeps the
    size and puts mtime back. 1.2 GB are hashed in a second; remembered it takes 0.1 ms.

    Raises:
        OSError: the file cannot be read.
    """
    memory = cache_root() / "hashes" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    stamp = stamp_of(path)
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not remembered, or damaged: it is hashed again
    digest = _digest(path)
    if time.time_ns() - stamp[-1] > _RECENT_NS and stamp_of(path) == stamp:
        _remember(memory, stamp, digest)
    return digest


def sampled_sha256(path: Path) -> str:
    """sha256 of a file's size and of 16 pieces of 64 KiB, evenly spread: for files that take hours to read.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for number in range(_PIECES):
            stream.seek(max(size - _PIECE, 0) * number // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
    return digest.hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(path: Path) -> list[int]:
    """Device, inode, size, mtime and ctime: any write to a file changes it.

    Raises:
        OSError: no such file.
    """
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _remember(memory: Path, stamp: list[int], digest: str) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        staged = memory.with_name(f".{memory.name}.{os.getpid()}")
        staged.write_text(json.dumps({"stamp": stamp, "sha256": digest}), encoding="utf-8")
        staged.replace(memory)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
