"""sha256 digests of bytes, texts, JSON values, files, folders and sources. No other module of ft imports hashlib."""

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
    """A digest that is updated piece by piece."""

    def update(self, data: Any, /) -> None:
        """Adds bytes."""

    def digest(self) -> bytes:
        """The digest as 32 bytes."""

    def hexdigest(self) -> str:
        """The digest as 64 hexadecimal digits."""


def new_digest(*parts: Any) -> Digest:
    """A digest of these texts (as UTF-8), bytes and contiguous buffers, which can be updated further."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest


def sha256_of(*parts: Any) -> str:
    """sha256 of the concatenation of texts (as UTF-8), bytes and contiguous buffers, hexadecimal."""
    return new_digest(*parts).hexdigest()


def json_sha256(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """sha256 of a JSON value, independent of the order of keys.

    Args:
        value: the value.
        default: converts other values to JSON values.
    """
    return sha256_of(json.dumps(value, sort_keys=True, default=default))


def combined(parts: Sequence[object]) -> str:
    """sha256 of several digests, or of the texts of other values."""
    return json_sha256([str(part) for part in parts])


def contents_sha256(file: Path) -> str:
    """sha256 of a file's bytes; see `ftcore.utils.file_digests` for a cached one.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    _add(digest, file)
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, or of the names and bytes of a folder's files."""
    if path.is_file():
        return contents_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        digest.update(str(file.relative_to(path)).encode())
        _add(digest, file)
    return digest.hexdigest()


def sampled_sha256(path: Path) -> str:
    """sha256 of a file's size and of 16 evenly spaced pieces of 64 KiB, for files that take hours to read.

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
    """sha256 of the names and bytes of Python files. A package stands for all its files, subpackages included.

    Args:
        sources: modules and packages, or files and folders, in any order; duplicates count once.
    """
    return json_sha256(sorted({_source(*_place(source)) for source in sources}))


def package_of(name: str) -> ModuleType:
    """The package that a module belongs to: ``ftcore.data`` for ``ftcore.data.sources.resolve.readers``.

    Args:
        name: ``__name__`` of the module, which may move within the package without effect.
    """
    return sys.modules[".".join(name.split(".")[:2])]


def _place(source: ModuleType | Path) -> tuple[str, bool]:
    """A file or folder, and whether the folder of the file counts."""
    if isinstance(source, Path):
        return str(source), False
    assert source.__file__ is not None, f"{source.__name__} has no file: a package needs an __init__.py"
    return source.__file__, hasattr(source, "__path__")


@cache
def _source(location: str, is_package: bool) -> str:
    """The digest, computed once per process, since a process keeps running the code that it has loaded."""
    path = Path(location).parent if is_package else Path(location)
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files, f"{path} holds no sources"
    return json_sha256([[file.relative_to(path.parent).as_posix(), contents_sha256(file)] for file in files])


def _add(digest: Digest, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
