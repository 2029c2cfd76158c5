"""The content store: cached entries are named by a digest of their inputs, written atomically, locked and checked.

An entry is a folder ``<cache>/v2/<kind>/<name>``. Its name is a digest of its inputs and of the code that computed
it. A changed input or line of code gives a new entry. Its ``manifest.json``, which contains a digest of
itself, holds its purpose, the version of ft and the sha256 of its files. An entry is written under a temporary name,
flushed to the disk and renamed, so every entry is complete. The manifest's mtime is the time of its last use.

There are two locks. A process that writes an entry holds ``.<name>.lock`` in the same folder. A process that uses an
entry shares a lock on its manifest, so that it is not pruned. The system releases both when the process ends. Nothing
here imports numpy or torch.
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
from ftcore.utils.files import leftovers, staged_folder, staging_path
from ftcore.utils.hashing import contents_sha256, json_sha256, sources_sha256

LAYOUT = "v2"
"""Folder in the cache. Other folders there are of earlier versions: see `ftcore.utils.cache_pruning`."""
MANIFEST = "manifest.json"
_DIGITS = 32


@dataclass(frozen=True)
class CacheKind:
    """A kind of entry.

    Args:
        name: name of its folder, and on the command line.
        purpose: what its entries hold.
        files: patterns of file names besides the manifest. No other file is ever removed.
    """

    name: str
    purpose: str
    files: tuple[str, ...] = ()


_ARRAYS = ("ids", "weights", "reasons", "offsets", "places", "times", "images")  # ftcore.data.storage.arrays.ARRAYS
TOKENS = CacheKind("tokens", "tokenised datasets", _ARRAYS)
FILE_DIGESTS = CacheKind("file-digests", "sha256 of data and model files")
REFERENCE = CacheKind("reference", "log-probabilities of reference models", ("values.safetensors",))
FROZEN_LAYERS = CacheKind("frozen-layers", "inputs of the first trainable layer", ("*.rows",))
CAPABILITY_PROBES = CacheKind("capability-probes", "tested capabilities of models")
MATMUL_CHOICE = CacheKind("matmul-choice", "the fastest matrix multiplication on this machine")
CACHE_KINDS = {
    kind.name: kind for kind in (TOKENS, FILE_DIGESTS, REFERENCE, FROZEN_LAYERS, CAPABILITY_PROBES, MATMUL_CHOICE)
}


def entry_name(inputs: Any, sources: Iterable[ModuleType | Path] = ()) -> str:
    """Name of an entry: 32 digits of the sha256 of its inputs and sources.

    Args:
        inputs: everything that determines its content; values that are not JSON count as their text.
        sources: packages (with all their files), modules and files of the code that computes it.
    """
    return json_sha256([inputs, sources_sha256(sources)], default=str)[:_DIGITS]


def store_root() -> Path:
    """The folder of all entries."""
    return cache_root() / LAYOUT


# ---- manifests ----


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's manifest; None if it is missing or damaged."""
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
    """Writes a folder atomically: under a temporary name, flushed to the disk, and renamed.

    Args:
        folder: path of the folder; replaced if it exists.
        about: what it is for, as text for people.
        value: a JSON value, stored in the manifest.
        fill: writes files into a folder; returns their sha256 if known.

    Raises:
        OSError: it cannot be written; no part of it is left then.
    """
    with staged_folder(
        folder, durable=fill is not None
    ) as staged:  # the seal detects a damaged manifest, so an entry without files needs no flush
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
    """Deletes a folder atomically: it is renamed first."""
    doomed = staging_path(folder)
    with suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed)


# ---- entries ----


class Held:
    """An open entry, which is not pruned until it is closed or the process ends.

    Attributes:
        value: the value in the manifest.
        files: name -> sha256.
    """

    def __init__(self, folder: Path, stream: BinaryIO, content: Mapping[str, Any]) -> None:
        self.folder, self._stream = folder, stream
        self.value, self.files = content["value"], dict(content["files"])

    def is_whole(self, digest: Callable[[Path], str] = contents_sha256) -> bool:
        """Whether all files match the digests in the manifest."""
        try:
            return all(digest(self.folder / name) == known for name, known in self.files.items())
        except OSError:
            return False

    def close(self) -> None:
        """Closes the entry, which may then be pruned."""
        self._stream.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Entry:
    """An entry of the store, which need not exist.

    Args:
        kind: its kind.
        name: see `entry_name`.
        root: root of the store.
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
        """The entry in the cache for the result that ``sources`` compute from ``inputs``."""
        return cls(kind, entry_name(inputs, sources), store_root(), locking)

    @cached_property
    def folder(self) -> Path:
        """The entry's folder, whether it exists or not."""
        return self.root / self.kind.name / self.name

    @contextmanager
    def making(self) -> Iterator[None]:
        """A context for writing the entry, for one process at a time; partial entries of killed processes are removed.

        Raises:
            OSError: the folder cannot be written.
            RunError: the file system has no locks, and ``locking`` is true.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with made_under(making_lock(self.folder), locking=self.locking) as alone:
            if alone:
                for left in leftovers(self.folder):
                    shutil.rmtree(left, ignore_errors=True)
            yield

    def open(self) -> Held | None:
        """Opens the entry and locks it against pruning; None if it is missing or its manifest damaged."""
        try:
            stream = (self.folder / MANIFEST).open("rb")
        except OSError:
            return None
        try:
            take(stream, self.folder, shared=True, wait=True, locking=self.locking)
            content = _unsealed(stream.read()) if is_same_file(stream, self.folder / MANIFEST) else None
            if content is not None:
                with suppress(OSError):  # an entry of another user is readable, but its mtime cannot be set
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
        """The value in the manifest; None if there is no entry."""
        content = read_manifest(self.folder)
        if content is None:
            return None
        with suppress(OSError):
            os.utime(self.folder / MANIFEST)
        return content["value"]

    def value(self, make: Callable[[], Any], about: str, is_valid: Callable[[Any], bool] = lambda value: True) -> Any:
        """The stored value; if there is none, the result of ``make``, which is stored if possible.

        Args:
            make: computes a JSON value other than None; called in one process at a time.
            about: what it is for.
            is_valid: whether a stored value may be used.
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
                return make()  # without a writable cache the value is computed each time
            if (found := known()) is not None:
                return found  # another process has written it in the meantime
            value = make()
            with suppress(OSError):
                self.write(about, value)
            return value


def making_lock(folder: Path) -> Path:
    """The file that a process locks while it writes an entry."""
    return folder.with_name(f".{folder.name}.lock")
