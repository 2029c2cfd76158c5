"""The content store: how what ft keeps between runs is named, written, locked, checked and removed.

An entry is a folder ``<cache>/v2/<kind>/<name>``. Its name is a digest of what it was made from and of the sources that
made it, so that a changed input or a changed line of code makes it anew. ``manifest.json`` in it, which is sealed with
a digest of itself, says what it is for, who made it, and sha256 of its files. It is written beside, flushed to the disk
and moved into place in one step: what has a name is whole. Its last use is the manifest's mtime.

Two locks: who makes an entry holds ``.<name>.lock`` beside it; who uses one shares a lock on its manifest, which
nobody who prunes gets then. Both end with their process, however that ends. Nothing here imports numpy or torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from ftcore.utils.cache_dir import cache_root
from ftcore.utils.file_lock import is_same_file, made_under, take
from ftcore.utils.files import staged_folder, staging_path
from ftcore.utils.hashing import contents_sha256, json_sha256, sources_sha256

LAYOUT = "v2"
"""Folder in the cache. What lies beside it is of earlier versions: see `ftcore.utils.cache_pruning`."""
MANIFEST = "manifest.json"
_DIGITS = 32


@dataclass(frozen=True)
class CacheKind:
    """A kind of entry.

    Args:
        name: of its folder, and on the command line.
        purpose: what its entries hold.
        files: patterns of the names of their files, besides the manifest. Nothing else is ever removed.
    """

    name: str
    purpose: str
    files: tuple[str, ...] = ()


_ARRAYS = ("ids", "weights", "reasons", "offsets", "places", "times", "images")  # ftcore.data.storage.arrays.ARRAYS
TOKENS = CacheKind("tokens", "tokenised datasets", _ARRAYS)
FILE_DIGESTS = CacheKind("file-digests", "sha256 of data and model files")
REFERENCE = CacheKind("reference", "log-probabilities by reference models", ("values.safetensors",))
FROZEN_LAYERS = CacheKind("frozen-layers", "outputs of the layers below the lowest trained one", ("*.rows",))
CAPABILITY_PROBES = CacheKind("capability-probes", "what models were shown to support")
MATMUL_CHOICE = CacheKind("matmul-choice", "the faster matrix multiplication of this machine")
CACHE_KINDS = {
    kind.name: kind for kind in (TOKENS, FILE_DIGESTS, REFERENCE, FROZEN_LAYERS, CAPABILITY_PROBES, MATMUL_CHOICE)
}


def entry_name(inputs: Any, sources: Iterable[ModuleType | Path] = ()) -> str:
    """Name of an entry: 32 digits of the sha256 of what it was made from.

    Args:
        inputs: all that decides its content; what is no JSON counts by its text.
        sources: packages, modules and files of the code that makes it; of a package all files.
    """
    return json_sha256([inputs, sources_sha256(sources)], default=str)[:_DIGITS]


def store_root() -> Path:
    """Where entries are."""
    return cache_root() / LAYOUT


# ---- manifests ----


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's manifest; None where there is none that is whole."""
    try:
        return _unsealed((folder / MANIFEST).read_bytes())
    except OSError:
        return None


def _unsealed(text: bytes) -> dict[str, Any] | None:
    try:
        sealed = json.loads(text)
        content, seal = sealed["content"], sealed["seal"]
    except (ValueError, KeyError, TypeError):
        return None
    return content if isinstance(content, dict) and seal == json_sha256(content) else None


def write_folder(
    folder: Path,
    about: str,
    value: Any,
    fill: Callable[[Path], Mapping[str, str] | None] | None = None,
) -> None:
    """Writes a folder whole: fills it beside its place, flushes it to the disk and moves it there.

    Args:
        folder: its place; what has it is replaced.
        about: what it is for, as people read it.
        value: kept in the manifest: JSON.
        fill: writes files into a folder; returns their sha256 if it knows them.

    Raises:
        OSError: it cannot be written; nothing of it is left then.
    """
    with staged_folder(folder, durable=fill is not None) as staged:  # damage to the manifest alone shows by its seal
        digests = (fill(staged) if fill else None) or {}
        content = {
            "about": about,
            "made_by": f"ftcore {importlib.metadata.version('ftcore')}",
            "value": value,
            "files": {file.name: digests.get(file.name) or contents_sha256(file) for file in sorted(staged.iterdir())},
        }
        content = json.loads(json.dumps(content))  # as it will be read
        (staged / MANIFEST).write_text(json.dumps({"content": content, "seal": json_sha256(content)}), encoding="utf-8")


def delete_folder(folder: Path) -> None:
    """A folder goes in one step: nobody finds half of one under its name."""
    doomed = staging_path(folder)
    with suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed)


# ---- entries ----


class Held:
    """An entry that is used, and so stays, until it is closed or the process ends.

    Attributes:
        value: what the manifest keeps.
        files: sha256 by name.
    """

    def __init__(self, folder: Path, stream: BinaryIO, content: Mapping[str, Any]) -> None:
        self.folder, self._stream = folder, stream
        self.value, self.files = content["value"], dict(content["files"])

    def is_whole(self, digest: Callable[[Path], str] = contents_sha256) -> bool:
        """Whether each file has the digest that the manifest says."""
        try:
            return all(digest(self.folder / name) == known for name, known in self.files.items())
        except OSError:
            return False

    def close(self) -> None:
        """Whoever prunes may remove the entry from now on."""
        self._stream.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Entry:
    """A place in the store.

    Args:
        kind: of what is kept.
        name: see `entry_name`.
        root: of the store.
        locking: the option ``use_file_locking``; None locks where the file system has locks.
    """

    kind: CacheKind
    name: str
    root: Path
    locking: bool | None = None

    @classmethod
    def of(
        cls, kind: CacheKind, inputs: Any, sources: Iterable[ModuleType | Path], locking: bool | None = None
    ) -> Entry:
        """The entry of what is made from ``inputs`` by ``sources``, in the cache."""
        return cls(kind, entry_name(inputs, sources), store_root(), locking)

    @cached_property
    def folder(self) -> Path:
        """Where it is, or would be."""
        return self.root / self.kind.name / self.name

    @contextmanager
    def making(self) -> Iterator[None]:
        """One process at a time is in here, the others wait. What killed processes have left of the entry is removed.

        Raises:
            OSError: the folder cannot be written.
            RunError: the file system has no locks, and ``locking`` is true.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with made_under(making_lock(self.folder), locking=self.locking) as alone:
            if alone:
                for left in staged_of(self.folder):
                    shutil.rmtree(left, ignore_errors=True)
            yield

    def open(self) -> Held | None:
        """The entry, locked against whoever prunes; None where there is none, or none whose manifest is whole."""
        try:
            stream = (self.folder / MANIFEST).open("rb")
        except OSError:
            return None
        try:
            take(stream, self.folder, shared=True, wait=True, locking=self.locking)
            content = _unsealed(stream.read()) if is_same_file(stream, self.folder / MANIFEST) else None
            if content is not None:
                with suppress(OSError):  # of another user, who may be asked for it but not told
                    os.utime(stream.fileno())
                return Held(self.folder, stream, content)
        except BaseException:
            stream.close()
            raise
        stream.close()
        return None

    def write(self, about: str, value: Any, fill: Callable[[Path], Mapping[str, str] | None] | None = None) -> None:
        """See `write_folder`."""
        write_folder(self.folder, about, value, fill)

    def read_value(self) -> Any:
        """What the manifest keeps; None where nothing is kept."""
        content = read_manifest(self.folder)
        if content is None:
            return None
        with suppress(OSError):
            os.utime(self.folder / MANIFEST)
        return content["value"]

    def value(self, make: Callable[[], Any], about: str, is_valid: Callable[[Any], bool] = lambda value: True) -> Any:
        """What is kept, else what ``make`` gives, which is kept if it can be.

        Args:
            make: gives something that JSON holds, and no None; one process at a time is asked.
            about: what it is for.
            is_valid: whether what is kept may be used.
        """

        def known() -> Any:
            found = self.read_value()
            return found if found is not None and is_valid(found) else None

        if (found := known()) is not None:
            return found
        with ExitStack() as stack:
            try:
                stack.enter_context(self.making())
            except OSError:
                return make()  # a cache that cannot be written costs time, nothing else
            if (found := known()) is not None:
                return found  # another process has made it meanwhile
            made = make()
            with suppress(OSError):
                self.write(about, made)
            return made


def making_lock(folder: Path) -> Path:
    """Whose lock is held by who makes an entry."""
    return folder.with_name(f".{folder.name}.lock")


def staged_of(folder: Path) -> Iterator[Path]:
    """What is not yet an entry, or no longer one."""
    return folder.parent.glob(f".tmp-*-*-{folder.name}")
