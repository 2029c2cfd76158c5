"""Reads a text that is larger than memory through a moving window."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

from ftcore.data.sources.row_size import HEAD, byte_count, too_large
from ftcore.errors import RowError

_SPACE = re.compile(r"[ \t\r\n]*")


class TextWindow:
    """A piece of a text stream that knows the line and column of each character.

    Args:
        stream: opened without newline translation.
        size: characters per read.

    Attributes:
        text: the piece; positions are valid until the next `drop`.
    """

    def __init__(self, stream: TextIO, size: int = 1 << 20) -> None:
        self._stream, self._size = stream, size
        self.text, self._line, self._column = "", 1, 1

    def more(self) -> bool:
        """Extends the piece; returns False at the end of the text."""
        # The piece doubles each time: a row of 1 GB is then parsed ten times, not a thousand times.
        piece = self._stream.read(max(self._size, len(self.text)))
        self.text += piece
        return bool(piece)

    def drop(self, position: int) -> int:
        """Drops the text before a position if it exceeds ``size``, and returns the new position."""
        if position < self._size:
            return position
        self._line, self._column = self.at(position)
        self.text = self.text[position:]
        return 0

    def skip(self, position: int) -> int:
        """The next position that is not white space, or the end of the text."""
        while True:
            match = _SPACE.match(self.text, position)
            assert match is not None  # the pattern matches the empty string
            position = match.end()
            if position < len(self.text) or not self.more():
                return position

    def find(self, what: str, position: int, most: int) -> int:
        """The next position of a string; -1 at the end of the text or beyond ``most``."""
        while (found := self.text.find(what, position)) < 0:
            position = max(position, len(self.text) - len(what) + 1)
            if position > most or not self.more():
                return -1
        return found

    def lines(self, most: int) -> Iterator[tuple[int, str | RowError]]:
        """All lines from the start of the piece, with their numbers and without line ends.

        Args:
            most: limit of a line, in bytes; a longer line is yielded as its error.
        """
        while True:
            *lines, rest = self.text.split("\n")
            first, self._line, self.text = self._line, self._line + len(lines), rest
            for number, line in enumerate(lines, first):
                size = byte_count(line)
                yield number, line if size <= most else too_large(size, most, line)
            if byte_count(rest) > most:
                number = self._line
                yield number, too_large(self._skip_line(), most, rest[:HEAD])
            elif not self.more():
                yield self._line, self.text
                return

    def _skip_line(self) -> int:
        """Drops the first line of the piece with its line end, and returns its size in bytes."""
        size = 0
        while (end := self.text.find("\n")) < 0:
            size += byte_count(self.text)
            self.text = self._stream.read(self._size)
            if not self.text:
                return size
        size += byte_count(self.text[:end])
        self._line, self.text = self._line + 1, self.text[end + 1 :]
        return size

    def at(self, position: int) -> tuple[int, int]:
        """Line and column, counted from 1."""
        breaks = self.text.count("\n", 0, position)
        if not breaks:
            return self._line, self._column + position
        return self._line + breaks, position - self.text.rfind("\n", 0, position)
