"""A text that is longer than memory, read through a window that moves on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

from ftcore.data.sources.row_size import HEAD, byte_count, too_large
from ftcore.errors import RowError

_SPACE = re.compile(r"[ \t\r\n]*")


class TextWindow:
    """A piece of a text stream, with the line and column of every character in it.

    Args:
        stream: read to its end in the course of time; its line breaks must come untranslated.
        size: characters that are read at a time.

    Attributes:
        text: the piece; positions are into it until the next `drop`.
    """

    def __init__(self, stream: TextIO, size: int = 1 << 20) -> None:
        self._stream, self._size = stream, size
        self.text, self._line, self._column = "", 1, 1

    def more(self) -> bool:
        """Makes the piece longer; false at the end of the text."""
        # As much again as is there: a row of 1 GB is then tried ten times, not a thousand times.
        piece = self._stream.read(max(self._size, len(self.text)))
        self.text += piece
        return bool(piece)

    def drop(self, position: int) -> int:
        """Lets go of what stands before a position, once that is much, and returns where the position is then."""
        if position < self._size:
            return position
        self._line, self._column = self.at(position)
        self.text = self.text[position:]
        return 0

    def skip(self, position: int) -> int:
        """The first position from here on that is no blank; the text's end when there is none."""
        while True:
            match = _SPACE.match(self.text, position)
            assert match is not None  # the pattern matches the empty string
            position = match.end()
            if position < len(self.text) or not self.more():
                return position

    def find(self, what: str, position: int, most: int) -> int:
        """Where something stands from here on; -1 where the text ends before, or it is not near ``most``."""
        while (found := self.text.find(what, position)) < 0:
            position = max(position, len(self.text) - len(what) + 1)
            if position > most or not self.more():
                return -1
        return found

    def lines(self, most: int) -> Iterator[tuple[int, str | RowError]]:
        """All lines from the beginning of the piece on, without their breaks, with their numbers.

        Args:
            most: bytes; of a longer line the rest is not kept, and it comes out as what is wrong with it.
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
        """Lets go of the line that the piece begins with, and of its break, and returns its bytes."""
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
