"""Arrays kept on disk by content, row by row: written by several processes at once, read through memory maps.

A folder holds segments, each written by one process and only appended to. A record is a header and the row's bytes,
which the header seals by sha256; what a killed process left half written at a segment's end is passed over, what is
damaged is left out. Two processes that write the same row write the same bytes: either will do.
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
    """One process's records in a file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.scanned, self.bad = path, 0, False
        self._map: mmap.mmap | None = None

    def more(self) -> Iterator[tuple[bytes, int, int, bytes]]:
        """``(key, where its bytes begin, how many, their seal)`` of each whole record since the last call."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while not self.bad and self.scanned + _HEADER.size <= size:
                file.seek(self.scanned)
                magic, count, key, seal = _HEADER.unpack(file.read(_HEADER.size))
                if magic != _MAGIC:
                    log.warning("%s is damaged from byte %d on: what follows is not read", self.path, self.scanned)
                    self.bad = True
                    return
                begins = self.scanned + _HEADER.size
                if begins + count > size:
                    return  # half written, by a process that was killed or is still at it
                self.scanned = begins + _padded(count)
                yield key, begins, count, seal

    def bytes(self, begins: int, count: int) -> Bytes:
        """These bytes of the file, not copied."""
        if self._map is None or begins + count > len(self._map):
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, np.uint8, count, begins)


class RowStore:
    """Rows' bytes by their keys, in a folder.

    Args:
        folder: made when the first row is written.
        limit: bytes that the folder may hold.
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
        """Finds what other processes have written meanwhile."""
        self.size = 0
        for path in sorted(self.folder.glob("*.rows")):
            with suppress(FileNotFoundError):
                segment = self._segments.setdefault(path.name, Segment(path))
                self.size += path.stat().st_size
                for key, begins, count, seal in segment.more():
                    self._index.setdefault(key, (segment, begins, count, seal))

    def get(self, key: bytes, count: int) -> Bytes | None:
        """The row's bytes, of which there are ``count``, not copied; None where they are not there, or damaged."""
        if key not in self._index:
            return None
        segment, begins, there, seal = self._index[key]
        if key not in self._sound:
            if there != count or new_digest(segment.bytes(begins, there).data).digest() != seal:
                log.warning("%s: the record before byte %d is damaged: it is not used", segment.path, begins)
                del self._index[key]
                return None
            self._sound.add(key)
        return segment.bytes(begins, there)

    def put(self, key: bytes, row: Bytes) -> None:
        """Appends the row; nothing where there is no room, which is said once."""
        if self._full:
            return
        record = _HEADER.size + _padded(row.size)
        if self.size + record > self.limit:
            self._stop("the limit of its size is reached")
            return
        header = _HEADER.pack(_MAGIC, row.size, key, new_digest(row.data).digest())
        try:
            # nothing is buffered: what a full disk cuts off stays the last thing in the file
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
        log.warning("%s: %s; further rows are computed each time", self.folder, why)


def _padded(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED


# ---- folders of several stores, together under one limit ----

FREE_SHARE = 0.8
"""Share of the free disk that may be written to."""


def make_room(entry: Entry, needed: int, limit: int) -> str:
    """Deletes the entries of its kind that were not used for longest, so that one may grow.

    Args:
        entry: that is to be used.
        needed: bytes that it will hold.
        limit: bytes of all of them together.

    Returns:
        Why there is no room; empty where there is.
    """
    if needed > limit:
        return f"it takes {in_units(needed)}, and frozen_prefix_size allows {in_units(limit)}"
    kept = list_kept([entry.kind], entry.root)
    own = sum(one.size for one in kept if one.path == entry.folder)
    others = [one for one in kept if one.path != entry.folder]
    more, free = max(needed - own, 0), shutil.disk_usage(entry.root).free
    total = sum(one.size for one in others)
    for one in reversed(others):
        if needed + total <= limit and more <= FREE_SHARE * free:
            break
        if entry.locking is not False and one.remove():  # without locks nobody knows which ones are used
            total, free = total - one.size, free + one.size
    if more > FREE_SHARE * free:
        return (
            f"it takes {in_units(more)} more, and of {in_units(free)} that {entry.root} has free 80% are used at most"
        )
    return ""
