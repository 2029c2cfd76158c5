"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftcore.errors import RunError

NAME = ".ft.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder while entered; the lock ends with the process, however that ends.

    Raises:
        RunError: when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another run is writing to {folder}; wait for it, or write another output_dir") from error
        yield
