"""A content-addressed store of rows on disk: several processes append to it and read it through memory maps.

A folder holds segments, each appended to by one process. A record is a header and the row's bytes, whose sha256 is in
the header. An incomplete record at the end of a segment, left by a killed process, is ignored, and so are damaged
records. Processes that write the same row write the same bytes, so either copy is valid.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import struct
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ftcore.utils.cache_pruning import list_kept
from ftcore.utils.content_store import Entry
from ftcore.utils.hashing import new_digest
from ftcore.utils.units import in_units

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<8sQ16s32s")
_MAGIC = b"ft-row-1"
_ALIGNED = 64
Bytes = npt.NDArray[np.uint8]


class Segment:
    """The records of one process in a file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.scanned, self.bad = path, 0, False
        self._map: mmap.mmap | None = None

    def more(self) -> Iterator[tuple[bytes, int, int, bytes]]:
        """``(key, start of its bytes, number of bytes, sha256)`` of each whole record since the last call."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while not self.bad and self.scanned + _HEADER.size <= size:
                file.seek(self.scanned)
                magic, count, key, seal = _HEADER.unpack(file.read(_HEADER.size))
                if magic != _MAGIC:
                    log.warning("%s is damaged at byte %d: the rest of it is not read", self.path, self.scanned)
                    self.bad = True
                    return
                begins = self.scanned + _HEADER.size
                if begins + count > size:
                    return  # incomplete: the writing process was killed, or is still writing
                self.scanned = begins + _padded(count)
                yield key, begins, count, seal

    def bytes(self, begins: int, count: int) -> Bytes:
        """Bytes of the file, as a view of the memory map."""
        if self._map is None or begins + count > len(self._map):
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, np.uint8, count, begins)


class RowStore:
    """Bytes of rows by key, in a folder.

    Args:
        folder: created with the first row.
        limit: most bytes of the folder.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._segments: dict[str, Segment] = {}
        self._index: dict[bytes, tuple[Segment, int, int, bytes]] = {}
        self._sound: set[bytes] = set()
        self._own: FileIO | None = None
        self._full = False
        self.size = 0
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self) -> None:
        """Reads records that other processes have written since."""
        self.size = 0
        for path in sorted(self.folder.glob("*.rows")):
            with suppress(FileNotFoundError):
                segment = self._segments.setdefault(path.name, Segment(path))
                self.size += path.stat().st_size
                for key, begins, count, seal in segment.more():
                    self._index.setdefault(key, (segment, begins, count, seal))

    def get(self, key: bytes, count: int) -> Bytes | None:
        """The row's ``count`` bytes, as a view; None where they are missing or damaged."""
        if key not in self._index:
            return None
        segment, begins, there, seal = self._index[key]
        if key not in self._sound:
            if there != count or new_digest(segment.bytes(begins, there).data).digest() != seal:
                log.warning("%s: the record at byte %d is damaged and is not used", segment.path, begins)
                del self._index[key]
                return None
            self._sound.add(key)
        return segment.bytes(begins, there)

    def put(self, key: bytes, row: Bytes) -> None:
        """Appends the row; does nothing where space has run out, which is logged once."""
        if self._full:
            return
        record = _HEADER.size + _padded(row.size)
        if self.size + record > self.limit:
            self._stop("the cache has reached its size limit")
            return
        header = _HEADER.pack(_MAGIC, row.size, key, new_digest(row.data).digest())
        try:
            # unbuffered, in one write: a record that a full disk cuts short stays the last one of the file
            written = self._file().write(b"".join([header, row.data, bytes(record - _HEADER.size - row.size)]))
            if written < record:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._stop(error.strerror or str(error))
            return
        self.size += record

    def _file(self) -> FileIO:
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = (self.folder / f"{uuid.uuid4().hex}.rows").open("xb", buffering=0)
            weakref.finalize(self, self._own.close)
        return self._own

    def _stop(self, why: str) -> None:
        self._full = True
        log.warning("%s: %s; further rows are computed in each epoch", self.folder, why)


def _padded(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED


# ---- all stores together under one limit ----

FREE_SHARE = 0.8
"""Largest share of the free disk space to use."""


def make_room(entry: Entry, needed: int, limit: int) -> str:
    """Deletes the least recently used entries of the same kind, to make space for one.

    Args:
        entry: to be used.
        needed: bytes that it will hold.
        limit: most bytes of all entries together.

    Returns:
        Why there is no space; empty where there is.
    """
    if needed > limit:
        return f"it needs {in_units(needed)}, and frozen_prefix_size allows {in_units(limit)}"
    kept = list_kept([entry.kind], entry.root)
    own = sum(one.size for one in kept if one.path == entry.folder)
    others = [one for one in kept if one.path != entry.folder]
    more, free = max(needed - own, 0), shutil.disk_usage(entry.root).free
    total = sum(one.size for one in others)
    for one in reversed(others):
        if needed + total <= limit and more <= FREE_SHARE * free:
            break
        if entry.locking is not False and one.remove():  # without locks an entry in use cannot be told
            total, free = total - one.size, free + one.size
    if more > FREE_SHARE * free:
        return f"it needs {in_units(more)} more, and may use 80% of the {in_units(free)} free in {entry.root}"
    return ""
