"""Standard output and error that may close or fill up without ending anything; what was to be read is in a file too."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from io import TextIOBase
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ftcore.errors import FtError, UsageError

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
"""Terminal control: CSI and OSC sequences, and those of two characters (ECMA-48)."""
_KEPT = 1 << 16
"""Characters of an unfinished line that are kept."""


class SafeStream(TextIOBase):
    """A text stream whose reader may go away, or whose disk may fill up: from then on nothing is written to it.

    Args:
        stream: the real one; None where the process was started without it.
        log: gets everything as well; None for none.
    """

    def __init__(self, stream: TextIO | None, log: LineLog | None = None) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        """Writes, where that is still possible."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes str, not {type(text).__name__}")
        if self.log is not None:
            self.log.write(text)
        if self.stream is not None:
            try:
                self._write(self.stream, text)
            except BlockingIOError:  # a reader that is slow, on a pipe that does not wait: the log has it
                pass
            except (OSError, ValueError):  # BrokenPipeError, EIO of a terminal that is gone, ENOSPC; or it is closed
                self._give_up()
        return len(text)

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # also a ValueError: the terminal has fewer characters
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if "\n" in text:
            stream.flush()

    def flush(self) -> None:
        """Flushes, where that is still possible."""
        if self.stream is None:
            return
        try:
            self.stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """What is still buffered goes nowhere, so that the interpreter's own last flush does not fail."""
        stream, self.stream = self.stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            assert stream is not None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()

    def isatty(self) -> bool:
        """Whether people see it; a line of progress has no use otherwise."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """Of the real stream."""
        if self.stream is None:
            raise OSError("the stream is closed")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the real stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Of the real stream."""
        return getattr(self.stream, "errors", None)


class LineLog:
    """A file of the lines that a terminal would show in the end: without colours, and of a bar its last state.

    Until it is opened lines are kept in memory.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._early: list[str] = []
        self._line = ""
        self._size = 0

    def write(self, text: str) -> None:
        """Takes a piece of text, which may end within a line."""
        *lines, rest = _CONTROL.sub("", self._line + text).split("\n")
        shown = _shown(rest)
        self._line = (shown + rest[len(rest.rstrip("\r")) :])[-_KEPT:]
        for line in lines:
            self._put(_shown(line))

    def end_line(self) -> None:
        """What was begun is a line of its own."""
        if self._line:
            self.write("\n")

    def _put(self, line: str) -> None:
        if self._file is None:
            self._early.append(line)
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):  # the disk is full: the terminal still has it
            pass

    def open(self, file: Path) -> None:
        """Appends to a file from now on, beginning with what was kept."""
        with contextlib.suppress(OSError):
            self._file = file.open("a", encoding="utf-8", errors="backslashreplace")
            self._size = os.fstat(self._file.fileno()).st_size
        early, self._early = self._early, []
        for line in early:
            self._put(line)

    def take_back(self) -> None:
        """Makes a file that was there before what it was."""
        if self._file is not None and self._size:
            with contextlib.suppress(OSError, ValueError):
                self._file.truncate(self._size)
            self._line = ""

    def close(self) -> None:
        """Ends the file."""
        self.end_line()
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
            self._file = None


def _shown(line: str) -> str:
    """What is behind the last return to the line's beginning."""
    return line.rstrip("\r").rpartition("\r")[2]


class ConsoleLog:
    """While it is entered, whatever is printed survives a closed or full output, and goes to a log file as well.

    An error that leaves it is written to the file; whoever catches it shows it to the user.
    """

    def __enter__(self) -> ConsoleLog:
        self.log = LineLog()
        self._before = sys.stdout, sys.stderr
        self._own = SafeStream(sys.stdout, self.log), SafeStream(sys.stderr, self.log)
        sys.stdout, sys.stderr = self._own
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self.log.write(f"---- {began}, process {os.getpid()}\n")
        return self

    def write_to(self, file: Path) -> None:
        """The log file; what was printed before is in it too."""
        self.log.open(file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.log.end_line()
        if isinstance(error, FtError):
            self.log.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        elif error is not None:
            self.log.write("".join(traceback.format_exception(error)))
        if isinstance(error, UsageError):  # a run that is refused changes nothing
            self.log.take_back()
        self.log.close()
        for stream in self._own:
            stream.flush()
            stream.log = None  # loggers that were made meanwhile keep the stream
        if sys.stdout is self._own[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._own[1]:
            sys.stderr = self._before[1]


@contextlib.contextmanager
def surviving() -> Iterator[None]:
    """While it is entered, a closed or full output ends nothing: what is done leaves its results elsewhere."""
    before = sys.stdout, sys.stderr
    own = SafeStream(sys.stdout), SafeStream(sys.stderr)
    sys.stdout, sys.stderr = own
    try:
        yield
    finally:
        for stream in own:
            stream.flush()
        sys.stdout, sys.stderr = before
