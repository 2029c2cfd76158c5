"""sha256 digests: of bytes, texts, JSON values, files, folders and sources. Nothing else in ft imports hashlib."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

_BLOCK = 1 << 20
_PIECES, _PIECE = 16, 1 << 16


class Digest(Protocol):
    """A digest that is fed piece by piece."""

    def update(self, data: Any, /) -> None:
        """Adds bytes."""

    def digest(self) -> bytes:
        """Of all that was added, 32 bytes."""

    def hexdigest(self) -> str:
        """Of all that was added, 64 hexadecimal digits."""


def new_digest(*parts: Any) -> Digest:
    """A digest that has been fed with these texts (as UTF-8), bytes and contiguous buffers."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest


def sha256_of(*parts: Any) -> str:
    """sha256 over texts (as UTF-8), bytes and contiguous buffers, as if they were one; hexadecimal."""
    return new_digest(*parts).hexdigest()


def json_sha256(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """sha256 of a value of JSON's kinds, whatever the order of its keys.

    Args:
        value: the value.
        default: makes something JSON of what is not.
    """
    return sha256_of(json.dumps(value, sort_keys=True, default=default))


def combined(parts: Sequence[object]) -> str:
    """sha256 over several digests, or other things that are known by their texts."""
    return json_sha256([str(part) for part in parts])


def contents_sha256(file: Path) -> str:
    """sha256 of a file's bytes; see `ftcore.utils.file_digests` for one that is remembered.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    _add(digest, file)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, or over the names and bytes of a folder's files."""
    if path.is_file():
        return contents_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        digest.update(str(file.relative_to(path)).encode())
        _add(digest, file)
    return digest.hexdigest()


def sampled_sha256(path: Path) -> str:
    """sha256 of a file's size and of 16 pieces of 64 KiB, evenly spread: for files that take hours to read.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    digest = new_digest(str(size))
    with path.open("rb") as stream:
        for number in range(_PIECES):
            stream.seek(max(size - _PIECE, 0) * number // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
    return digest.hexdigest()


def sources_sha256(sources: Iterable[ModuleType | Path]) -> str:
    """sha256 over the names and bytes of Python files: of a package all, its subpackages included.

    Args:
        sources: modules and packages, or files and folders of such; in any order, each counts once.
    """
    return json_sha256(sorted({_source(*_place(source)) for source in sources}))


def package_of(name: str) -> ModuleType:
    """The package that a module belongs to: ``ftcore.data`` for ``ftcore.data.sources.resolve.readers``.

    Args:
        name: ``__name__`` of the module: its sources stay the whole package's wherever it is moved within it.
    """
    return sys.modules[".".join(name.split(".")[:2])]


def _place(source: ModuleType | Path) -> tuple[str, bool]:
    """A file or folder, and whether the folder that it is in is meant."""
    if isinstance(source, Path):
        return str(source), False
    assert source.__file__ is not None, f"{source.__name__} has no file: a package needs an __init__.py"
    return source.__file__, hasattr(source, "__path__")


@cache
def _source(file: str, is_package: bool) -> str:
    """Read once in a process: what it runs is what it began with."""
    path = Path(file).parent if is_package else Path(file)
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files, f"{path} holds no sources"
    return json_sha256([[one.relative_to(path.parent).as_posix(), contents_sha256(one)] for one in files])


def _add(digest: Digest, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
