"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ftcore.errors import RunError

NAME = ".ft.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder while entered; the lock ends with the process, however that ends.

    Raises:
        RunError: when another process holds it, or nothing can be written there.
    """
    with _opened(folder) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another run is writing to {folder}; wait for it, or write another output_dir") from error
        yield


def _opened(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / NAME).open("a")
    except OSError as error:
        raise RunError(f"nothing can be written to output_dir {folder}: {error.strerror}") from error
