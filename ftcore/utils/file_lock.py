"""Locks on files, which end with their process, however that ends: one run at a time in a folder, and the like."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from ftcore.errors import RunError
from ftcore.utils.ownership import LOCK

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
"""What file systems without locks answer: NFS without its lock daemon, several of FUSE, of clusters and of objects."""
WITHOUT = "use_file_locking=false goes without; see to it then that no second process writes there"


class HeldError(RunError):
    """Another process holds the lock."""


def take(stream: IO[Any], path: Path, *, shared: bool = False, wait: bool = False, locking: bool | None = True) -> bool:
    """Locks an open file until it is closed; whether it is locked then.

    Args:
        stream: the open file.
        path: named in errors: what is to be written.
        shared: others may hold it too, if they share it as well.
        wait: until it is free.
        locking: the option ``use_file_locking``; false does nothing, None goes without where there are no locks.

    Raises:
        HeldError: when another process holds it.
        RunError: when the file system has no locks; the option that goes without is named.
    """
    if locking is False:
        return False
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise HeldError(f"another process is writing {path}") from error
    except OSError as error:
        if locking is None and error.errno in _NO_LOCKS:
            return False
        reason = f"{path} cannot be locked: {error.strerror}"
        if error.errno in _NO_LOCKS:
            reason = f"the file system of {path} has no locks ({error.strerror}); {WITHOUT}"
        raise RunError(reason) from error
    return True


def is_same_file(stream: IO[Any], path: Path) -> bool:
    """Whether a path still leads to an open file: who waited for a lock may hold one of a file that is gone."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False


@contextmanager
def made_under(path: Path, *, wait: bool = True, locking: bool | None = True) -> Iterator[bool]:
    """Holds the lock of what is made meanwhile; its file is gone afterwards.

    Args:
        path: of the lock; its folder exists.
        wait: until another process is done; else it goes on without the lock.
        locking: see `take`.

    Returns:
        Whether the lock is held: not where ``wait`` is false and another process holds it, nor where nothing is locked.

    Raises:
        OSError: the file cannot be made.
        RunError: see `take`.
    """
    if locking is False:
        yield False
        return
    while True:
        stream = path.open("a")
        try:
            held = take(stream, path.parent, wait=wait, locking=locking)
        except HeldError:
            stream.close()
            yield False
            return
        except BaseException:
            stream.close()
            raise
        if not held or is_same_file(stream, path):
            break
        stream.close()  # whoever held it has removed it
    with stream:
        try:
            yield held
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def locked(folder: Path, *, locking: bool = True) -> Iterator[None]:
    """Holds the folder while entered; the lock ends with the process, however that ends.

    Args:
        folder: is made where it is not there.
        locking: the option ``use_file_locking``.

    Raises:
        RunError: when another process holds it, nothing can be written there, or the file system has no locks.
    """
    with _opened(folder) as stream:
        try:
            take(stream, folder, locking=locking)
        except HeldError as error:
            raise RunError(f"another run is writing to {folder}; wait for it, or write another output_dir") from error
        yield


def is_held(folder: Path) -> bool | None:
    """Whether a run holds a folder; None where nobody can tell."""
    try:
        with (folder / LOCK).open("rb") as stream:
            take(stream, folder, shared=True)
    except HeldError:
        return True
    except (OSError, RunError):  # it is not there, cannot be opened, or the file system has no locks
        return None
    return False


def _opened(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a")
    except OSError as error:
        raise RunError(f"nothing can be written to output_dir {folder}: {error.strerror}") from error
