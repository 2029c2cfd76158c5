"""A resumable file of answers: ``OUTPUT.partial``, which is moved to ``OUTPUT`` when it is complete.

Its first line has the facts that the answers depend on. Answers are batched and sampled per window, so that a resumed
run gives the same answers as an uninterrupted one. A kill loses at most one window.
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
from ftcore.utils.files import leftovers, staged_file

MARK, WINDOW, LINES = "ft_partial", "answers at a time", "answers"
"""Keys in the first line of the file."""


class ResumableOutput:
    """An open partial file; see `open_partial`.

    Attributes:
        done: number of answers in the file.
    """

    def __init__(self, output: Path, stream: BinaryIO, begin: int, done: int) -> None:
        self.output, self.stream, self.begin, self.done = output, stream, begin, done

    def write(self, lines: Sequence[str]) -> None:
        """Appends a window of lines and syncs them to disk."""
        with _file_errors(partial_of(self.output)):
            self.stream.write("".join(f"{line}\n" for line in lines).encode())
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.done += len(lines)

    def finish(self) -> None:
        """Moves the lines to ``output``."""
        for left in leftovers(self.output):  # of a process that was killed here; the partial file is locked
            left.unlink()
        self.stream.seek(self.begin)
        with _file_errors(self.output), staged_file(self.output) as staged, staged.open("wb") as target:
            shutil.copyfileobj(self.stream, target)
        partial_of(self.output).unlink(missing_ok=True)


def partial_of(output: Path) -> Path:
    """The path of the partial file."""
    return output.with_name(f"{output.name}.partial")


@contextmanager
def open_partial(
    output: Path, facts: Mapping[str, Any], count: int, window: int, *, locking: bool = True
) -> Iterator[ResumableOutput]:
    """Creates the partial file, or resumes an existing one.

    Args:
        output: the final file; it is replaced only at the end.
        facts: JSON facts that the lines depend on.
        count: number of lines of the complete file.
        window: lines per write.
        locking: the option ``use_file_locking``.

    Raises:
        UsageError: the existing file has other facts (with each difference), or another format.
        RunError: the file cannot be written, or another process is writing it.
    """
    path = partial_of(output)
    facts = {**facts, WINDOW: window, LINES: count}
    with _file_errors(path):
        stream = path.open("a+b")
    with stream:
        _lock(stream, path, locking)
        with _file_errors(path):
            begin, done = _resume_or_start(stream, path, facts)
        partial = ResumableOutput(output, stream, begin, done)
        try:
            yield partial
        finally:
            if not partial.done:
                path.unlink()


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system into a one-line RunError."""
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


def _resume_or_start(stream: BinaryIO, path: Path, facts: Mapping[str, Any]) -> tuple[int, int]:
    """``(size of the first line in bytes, complete lines after it)``; the rest is truncated."""
    stream.seek(0)
    first = stream.readline()
    done = end = 0
    if first:
        known = _facts(first, path)
        done, end = _complete_lines(stream, known[WINDOW], known[LINES])
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


def _complete_lines(stream: BinaryIO, window: int, lines: int) -> tuple[int, int]:
    """Number of lines in complete windows, and their end in bytes."""
    done = end = 0
    for number, line in enumerate(stream, start=1):
        if not line.endswith(b"\n"):
            break
        if number % window == 0 or number == lines:
            done, end = number, stream.tell()
    return done, end


def _facts(first: bytes, path: Path) -> dict[str, Any]:
    """The facts in the first line."""
    try:
        known: dict[str, Any] = json.loads(first)
        if known.pop(MARK) == 1 and isinstance(known[WINDOW], int) and isinstance(known[LINES], int):
            return known
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UsageError(Problem(f"{path} was not written by this version of ft", hint="move or remove it"))


def _check(known: Mapping[str, Any], path: Path, facts: Mapping[str, Any]) -> None:
    """Raises an error for differing facts."""
    wanted = json.loads(json.dumps(facts))
    names = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
    if names:
        hint = f"undo the change, or remove {path.name} to start again"
        changes = [Problem(f"{name} was {_shown(known.get(name))}, is {_shown(wanted.get(name))}") for name in names]
        raise UsageError([Problem(f"{path} cannot be resumed", hint=hint), *changes])


def _shown(value: Any) -> str:
    return short(json.dumps(value, ensure_ascii=False), 80)
