"""Output streams that survive a closed or full standard output and error, and a copy of the output in a log file."""

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
"""Maximum characters of an unfinished line in memory."""


class SafeStream(TextIOBase):
    """A text stream that stops writing, without an error, when its reader is gone or its disk is full.

    Args:
        stream: the wrapped stream; None if the process was started without it.
        log: receives a copy of everything; None for no log.
    """

    def __init__(self, stream: TextIO | None, log: LineLog | None = None) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        """Writes, if that is still possible."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes str, not {type(text).__name__}")
        if self.log is not None:
            self.log.write(text)
        if self.stream is not None:
            try:
                self._write(self.stream, text)
            except BlockingIOError:  # a slow reader on a non-blocking pipe: the log has the text
                pass
            except (OSError, ValueError):  # BrokenPipeError, EIO of a closed terminal, ENOSPC, or a closed stream
                self._give_up()
        return len(text)

    def _write(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # the terminal's encoding lacks a character; UnicodeEncodeError is a ValueError too
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if "\n" in text:
            stream.flush()

    def flush(self) -> None:
        """Flushes, if that is still possible."""
        if self.stream is None:
            return
        try:
            self.stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Redirects buffered text to /dev/null, so that the interpreter's last flush does not fail."""
        stream, self.stream = self.stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            assert stream is not None
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
            stream.flush()

    def isatty(self) -> bool:
        """Whether the wrapped stream is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """That of the wrapped stream."""
        if self.stream is None:
            raise OSError("the stream is closed")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the wrapped stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """That of the wrapped stream."""
        return getattr(self.stream, "errors", None)


class LineLog:
    """A log file of the lines that a terminal would finally show: without colours, and with a bar's last state only.

    Lines are in memory until the file is opened.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._early: list[str] = []
        self._line = ""
        self._size = 0

    def write(self, text: str) -> None:
        """Adds text, which may end within a line."""
        *lines, rest = _CONTROL.sub("", self._line + text).split("\n")
        shown = _shown(rest)
        self._line = (shown + rest[len(rest.rstrip("\r")) :])[-_KEPT:]
        for line in lines:
            self._put(_shown(line))

    def end_line(self) -> None:
        """Ends an unfinished line."""
        if self._line:
            self.write("\n")

    def _put(self, line: str) -> None:
        if self._file is None:
            self._early.append(line)
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):  # the disk is full: the text is still on the terminal
            pass

    def open(self, file: Path) -> None:
        """Opens a file for appending and writes the lines in memory to it."""
        with contextlib.suppress(OSError):
            self._file = file.open("a", encoding="utf-8", errors="backslashreplace")
            self._size = os.fstat(self._file.fileno()).st_size
        early, self._early = self._early, []
        for line in early:
            self._put(line)

    def take_back(self) -> None:
        """Restores a file that existed before to its earlier size."""
        if self._file is not None and self._size:
            with contextlib.suppress(OSError, ValueError):
                self._file.truncate(self._size)
            self._line = ""

    def close(self) -> None:
        """Closes the file."""
        self.end_line()
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
            self._file = None


def _shown(line: str) -> str:
    """The text after the last carriage return."""
    return line.rstrip("\r").rpartition("\r")[2]


class ConsoleLog:
    """A context in which output survives closed or full streams and is copied to a log file.

    An error that leaves the context is written to the log file; its handler shows it to the user.
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
        """Sets the log file, which also gets earlier output."""
        self.log.open(file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.log.end_line()
        if isinstance(error, FtError):
            self.log.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        elif error is not None:
            self.log.write("".join(traceback.format_exception(error)))
        if isinstance(error, UsageError):  # a refused run changes no file
            self.log.take_back()
        self.log.close()
        for stream in self._own:
            stream.flush()
            stream.log = None  # loggers created in the context keep a reference to the stream
        if sys.stdout is self._own[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._own[1]:
            sys.stderr = self._before[1]


@contextlib.contextmanager
def surviving() -> Iterator[None]:
    """A context in which a closed or full output does not end the process, since its results are elsewhere."""
    before = sys.stdout, sys.stderr
    own = SafeStream(sys.stdout), SafeStream(sys.stderr)
    sys.stdout, sys.stderr = own
    try:
        yield
    finally:
        for stream in own:
            stream.flush()
        sys.stdout, sys.stderr = before
