"""Locks on files, which the system releases when the process ends, for example one run at a time in a folder."""

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
"""Errors of file systems without locks: NFS without its lock daemon, some FUSE, cluster and object file systems."""
WITHOUT = "write use_file_locking=false, and make sure that no second process writes there"


class HeldError(RunError):
    """Another process holds the lock."""


def take(stream: IO[Any], path: Path, *, shared: bool = False, wait: bool = False, locking: bool | None = True) -> bool:
    """Locks an open file until it is closed; returns whether it is locked.

    Args:
        stream: the open file.
        path: the path in error messages.
        shared: whether the lock is shared.
        wait: whether to wait until the lock is free.
        locking: the option ``use_file_locking``. False does nothing; None accepts file systems without locks.

    Raises:
        HeldError: another process holds the lock.
        RunError: the file system has no locks; the message names ``use_file_locking``.
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
    """Whether a path still is the open file. While a process waited for its lock, the file may have been deleted."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False


@contextmanager
def made_under(path: Path, *, wait: bool = True, locking: bool | None = True) -> Iterator[bool]:
    """A context that holds a lock file and deletes it afterwards.

    Args:
        path: path of the lock file, in an existing folder.
        wait: whether to wait for another process; else the context continues without the lock.
        locking: see `take`.

    Returns:
        Whether the lock is held. It is not if another process holds it and ``wait`` is false, or without locking.

    Raises:
        OSError: the file cannot be created.
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
        stream.close()  # the previous holder has deleted it
    with stream:
        try:
            yield held
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def locked(folder: Path, *, locking: bool = True) -> Iterator[None]:
    """A context that holds the lock of a folder.

    Args:
        folder: created if it does not exist.
        locking: the option ``use_file_locking``.

    Raises:
        RunError: another process holds the lock, the folder is not writable, or the file system has no locks.
    """
    with _opened(folder) as stream:
        try:
            take(stream, folder, locking=locking)
        except HeldError as error:
            raise RunError(
                f"another run is writing to {folder}; wait until it ends, or write another output_dir"
            ) from error
        yield


def is_held(folder: Path) -> bool | None:
    """Whether a run holds the lock of a folder; None if unknown."""
    try:
        with (folder / LOCK).open("rb") as stream:
            take(stream, folder, shared=True)
    except HeldError:
        return True
    except (OSError, RunError):  # no lock file, not readable, or no locks on this file system
        return None
    return False


def _opened(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a")
    except OSError as error:
        raise RunError(f"output_dir {folder} is not writable: {error.strerror}") from error
