"""A file of answers that is begun once and gone on with: ``OUTPUT.partial``, moved to ``OUTPUT`` when it is whole.

Its first line says what the answers depend on. Answers come in windows, and a kill loses the one that it falls into:
they are batched and sampled a window at a time, so that what was made by two processes is what one would have made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ftcore.errors import Problem, RunError, UsageError, short
from ftcore.utils.file_lock import HeldError, take
from ftcore.utils.files import staged_file

MARK, WINDOW, LINES = "ft_partial", "answers at a time", "answers"
"""Keys of the first line."""


class ResumableOutput:
    """An open file of this kind; see `open_partial`.

    Attributes:
        done: how many lines are there.
    """

    def __init__(self, output: Path, stream: BinaryIO, begin: int, done: int) -> None:
        self.output, self.stream, self.begin, self.done = output, stream, begin, done

    def write(self, lines: Sequence[str]) -> None:
        """A window of lines, which are on the disk when this returns."""
        with _telling(partial_of(self.output)):
            self.stream.write("".join(f"{line}\n" for line in lines).encode())
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.done += len(lines)

    def finish(self) -> None:
        """Puts the lines in the place of ``output``."""
        self.stream.seek(self.begin)
        with _telling(self.output), staged_file(self.output) as staged, staged.open("wb") as target:
            shutil.copyfileobj(self.stream, target)
        partial_of(self.output).unlink(missing_ok=True)


def partial_of(output: Path) -> Path:
    """Where answers are until all are there."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def open_partial(
    output: Path, facts: Mapping[str, Any], count: int, window: int, *, locking: bool = True
) -> Iterator[ResumableOutput]:
    """Begins the file, or goes on with what lies there.

    Args:
        output: where the lines belong in the end; what is there stays until then.
        facts: what the lines depend on, plain JSON.
        count: how many there will be.
        window: how many are written at a time.
        locking: the option ``use_file_locking``.

    Raises:
        UsageError: what lies there was begun otherwise, naming each difference, or is no such file.
        RunError: it cannot be written, or another process writes it.
    """
    path = partial_of(output)
    facts = {**facts, WINDOW: window, LINES: count}
    with _telling(path):
        stream = path.open("a+b")
    with stream:
        _lock(stream, path, locking)
        with _telling(path):
            begin, done = _begun(stream, path, facts)
        partial = ResumableOutput(output, stream, begin, done)
        try:
            yield partial
        finally:
            if not partial.done:
                path.unlink()


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, as one line."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or path} cannot be written: {error.strerror}"
        raise RunError(f"{reason}; remove the cause, then repeat the command to resume") from error


def _lock(stream: BinaryIO, path: Path, locking: bool) -> None:
    try:
        take(stream, path, locking=locking)
    except HeldError as error:
        raise RunError(f"another process is writing {path}; wait for it, or write another --output") from error


def _begun(stream: BinaryIO, path: Path, facts: Mapping[str, Any]) -> tuple[int, int]:
    """``(bytes of the first line, lines behind it that are kept)``; what is behind these is cut off."""
    stream.seek(0)
    first = stream.readline()
    done = end = 0
    if first:
        known = _facts(first, path)
        done, end = _whole(stream, known[WINDOW], known[LINES])
        if done:
            _check(known, path, facts)
    if done:
        stream.truncate(end)
        stream.seek(end)
        return len(first), done
    stream.truncate(0)
    head = json.dumps({MARK: 1, **facts}, ensure_ascii=False).encode() + b"\n"
    stream.write(head)
    stream.flush()
    return len(head), 0


def _whole(stream: BinaryIO, window: int, lines: int) -> tuple[int, int]:
    """How many lines whole windows have, and where they end."""
    done = end = 0
    for number, line in enumerate(stream, start=1):
        if not line.endswith(b"\n"):
            break
        if number % window == 0 or number == lines:
            done, end = number, stream.tell()
    return done, end


def _facts(first: bytes, path: Path) -> dict[str, Any]:
    """What the first line says."""
    try:
        known: dict[str, Any] = json.loads(first)
        if known.pop(MARK) == 1 and isinstance(known[WINDOW], int) and isinstance(known[LINES], int):
            return known
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UsageError(Problem(f"{path} was not written by this version of ft", hint="move or remove it"))


def _check(known: Mapping[str, Any], path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses differences."""
    wanted = json.loads(json.dumps(facts))
    names = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    if names:
        hint = f"undo the change, or remove {path.name} to start again"
        changes = [Problem(f"{name} was {_said(known.get(name))}, is {_said(wanted.get(name))}") for name in names]
        raise UsageError([Problem(f"{path} cannot be resumed", hint=hint), *changes])


def _said(value: Any) -> str:
    return short(json.dumps(value, ensure_ascii=False), 80)
