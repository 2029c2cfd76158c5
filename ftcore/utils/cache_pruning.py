"""Lists and removes what the cache holds: entries of the content store, and entries of earlier versions of ft.

Only files that ft wrote are removed: entries whose files all have names that ft uses, partial entries of killed
processes, and files of earlier versions. Everything else stays, and so do entries that a process writes or uses.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ftcore.errors import RunError
from ftcore.utils.cache_dir import cache_root
from ftcore.utils.content_store import (
    CACHE_KINDS,
    CAPABILITY_PROBES,
    FILE_DIGESTS,
    FROZEN_LAYERS,
    MANIFEST,
    MATMUL_CHOICE,
    REFERENCE,
    TOKENS,
    CacheKind,
    delete_folder,
    making_lock,
    read_manifest,
    store_root,
)
from ftcore.utils.file_lock import made_under, take

OLD = "old"
"""The name of all kinds of earlier versions on the command line."""

_HEX = "[0-9a-f]{32}"
_NAME = re.compile(_HEX)
_STAGED = re.compile(rf"\.tmp-[0-9]+-[0-9]+-({_HEX})")
_ARRAYS = "|".join([*TOKENS.files, MANIFEST.replace(".", r"\.")])
_EARLIER = {
    "data": (TOKENS, rf"(?:({_HEX})|\.({_HEX})\.part)/(?:{_ARRAYS})|\.({_HEX})\.lock"),
    "hashes": (FILE_DIGESTS, rf"{_HEX}\.json|\.{_HEX}\.json\.[0-9]+"),
    "reference": (REFERENCE, rf"{_HEX}\.safetensors|\.{_HEX}\.safetensors\.[0-9]+"),
    "prefix": (FROZEN_LAYERS, rf"({_HEX})/{_HEX}\.rows|\.({_HEX})\.lock"),
    "proven": (CAPABILITY_PROBES, rf"{_HEX}\.json|\.tmp-[0-9]+-{_HEX}\.json"),
    "products.json": (MATMUL_CHOICE, r"\."),
}
"""File or folder in the cache that versions before 0.2 wrote -> its kind, and which files in it are theirs."""


@dataclass(frozen=True)
class Kept:
    """An entry of the cache.

    Args:
        kind: its kind.
        path: its folder or file.
        about: what it is for.
        made_by: the version of ft that wrote it.
        size: bytes of its files.
        last_used: seconds since the epoch.
        old: whether a version before the content store wrote it.
        left: whether it is partial: being written, or left by a killed process.
        strange: names of files in it that ft did not write; such an entry is not removed.
    """

    kind: CacheKind
    path: Path
    about: str
    made_by: str
    size: int
    last_used: float
    old: bool = False
    left: bool = False
    strange: tuple[str, ...] = ()

    @property
    def in_use(self) -> bool:
        """Whether a process writes or uses it; true if unknown."""
        if self.old:
            return any(map(_is_locked, _old_locks(self.path)))
        entry = _entry_of(self.path)
        return _is_locked(making_lock(entry)) or (not self.left and _is_locked(self.path / MANIFEST))

    def remove(self) -> bool:
        """Removes the entry unless it is in use or holds foreign files; returns whether it is gone."""
        if self.strange:
            return False
        with suppress(OSError, RunError):
            return _removed_old(self) if self.old else _removed(self)
        return False


@dataclass
class Pruned:
    """Removed entries, and those that could not be removed."""

    removed: list[Kept] = field(default_factory=list)
    stays: list[Kept] = field(default_factory=list)

    def take(self, kept: Kept) -> bool:
        """Removes an entry; returns whether it is gone."""
        gone = kept.remove()
        (self.removed if gone else self.stays).append(kept)
        return gone

    @property
    def freed(self) -> int:
        """Freed bytes."""
        return sum(kept.size for kept in self.removed)


def list_kept(kinds: Iterable[CacheKind] | None = None, root: Path | None = None) -> list[Kept]:
    """All entries of the cache, most recently used first.

    Args:
        kinds: only these kinds; None for all.
        root: root of a store; None for the cache, where entries of earlier versions are included.
    """
    wanted = list(CACHE_KINDS.values() if kinds is None else kinds)
    found = [kept for kind in wanted for kept in _entries((root or store_root()) / kind.name, kind)]
    if root is None:
        found += [kept for name in _EARLIER for kept in _old(cache_root() / name) if kept.kind in wanted]
    return sorted(found, key=lambda kept: (-kept.last_used, kept.path))


def prune(older_than: float | None = None, larger_than: int | None = None, *, now: float) -> Pruned:
    """Removes entries of earlier versions and killed processes, then the least recently used entries.

    Args:
        older_than: removes entries not used for this many seconds; None for no limit.
        larger_than: removes entries until at most this many bytes are left; None for no limit.
        now: seconds since the epoch.
    """
    result, found = Pruned(), list_kept()
    total = sum(kept.size for kept in found)
    for kept in sorted(found, key=lambda kept: (not (kept.old or kept.left), kept.last_used)):
        too_old = older_than is not None and kept.last_used < now - older_than
        too_large = larger_than is not None and total > larger_than
        if (kept.old or kept.left or too_old or too_large) and result.take(kept):
            total -= kept.size
    return result


def clear(name: str) -> Pruned:
    """Removes all entries of a kind.

    Args:
        name: a kind's name, `OLD` for entries of earlier versions, or ``all``.
    """
    result = Pruned()
    for kept in list_kept():
        if name == "all" or name == (OLD if kept.old else kept.kind.name):
            result.take(kept)
    return result


# ---- entries of the store ----


def _entries(folder: Path, kind: CacheKind) -> Iterator[Kept]:
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        staged = bool(_STAGED.fullmatch(path.name))
        if path.is_symlink() or not path.is_dir() or not (staged or _NAME.fullmatch(path.name)):
            continue
        with suppress(FileNotFoundError):  # another process is removing it
            yield _kept(path, kind, staged)


def _kept(path: Path, kind: CacheKind, staged: bool) -> Kept:
    files = list(path.iterdir())
    stats = [file.stat(follow_symlinks=False) for file in files]
    known = (MANIFEST, *kind.files)
    strange = sorted(
        file.name
        for file in files
        if file.is_symlink() or not file.is_file() or not any(fnmatch(file.name, pattern) for pattern in known)
    )
    manifest = None if staged else read_manifest(path)
    about = manifest["about"] if manifest else "half written" if staged else "damaged"
    used = (path / MANIFEST) if (path / MANIFEST).exists() else path
    return Kept(
        kind,
        path,
        about,
        manifest["made_by"] if manifest else "",
        sum(found.st_size for found in stats),
        used.stat().st_mtime,
        left=staged or manifest is None,
        strange=tuple(strange),
    )


def _entry_of(path: Path) -> Path:
    """The entry's folder, given it or its temporary folder."""
    staged = _STAGED.fullmatch(path.name)
    return path.with_name(staged[1]) if staged else path


def _is_locked(file: Path) -> bool:
    """Whether a process holds a lock on the file; true if unknown."""
    try:
        with file.open("r+b") as stream:
            take(stream, file)
    except FileNotFoundError:
        return False
    except (OSError, RunError):
        return True
    return False


def _removed(kept: Kept) -> bool:
    """Deletes an entry unless a process writes or uses it; returns whether it did."""
    path = kept.path
    with made_under(making_lock(_entry_of(path)), wait=False) as alone:
        if not alone:
            return False
        if _STAGED.fullmatch(path.name):
            shutil.rmtree(path)
            return True
        try:
            stream = (path / MANIFEST).open("r+b")
        except FileNotFoundError:
            delete_folder(path)
            return True
        with stream:
            take(stream, path)
            delete_folder(path)
        return True


# ---- entries of earlier versions ----


def _old(path: Path) -> Iterator[Kept]:
    kind, _ = _EARLIER[path.name]
    with suppress(OSError):
        stats = [file.stat() for file in _old_files(path)]
        if stats:
            used = max(found.st_mtime for found in stats)
            size = sum(found.st_size for found in stats)
            yield Kept(kind, path, "of earlier versions", "ft before 0.2", size, used, old=True)


def _old_files(path: Path) -> list[Path]:
    """The files of earlier versions below a path, without any other files."""
    if path.is_symlink() or not path.exists():
        return []
    if path.is_file():
        return [path]
    pattern = re.compile(_EARLIER[path.name][1])
    found = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in found if pattern.fullmatch(file.relative_to(path).as_posix())]


def _old_locks(path: Path) -> list[Path]:
    return [file for file in _old_files(path) if file.name.endswith(".lock")]


def _removed_old(kept: Kept) -> bool:
    """Deletes the files of an earlier version's entry unless a process uses one of them."""
    if kept.in_use:
        return False
    for file in _old_files(kept.path):
        file.unlink()
    if kept.path.is_dir():
        for folder in sorted((path for path in kept.path.rglob("*") if path.is_dir()), reverse=True):
            if _NAME.search(folder.name):
                with suppress(OSError):  # it holds foreign files
                    folder.rmdir()
        with suppress(OSError):
            kept.path.rmdir()
    return True
