"""A text that is longer than memory, read through a window that moves on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

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

    def find(self, what: str, position: int) -> int:
        """Where something stands from here on; -1 where the text ends before."""
        while (found := self.text.find(what, position)) < 0:
            position = max(position, len(self.text) - len(what) + 1)
            if not self.more():
                return -1
        return found

    def lines(self) -> Iterator[tuple[int, str]]:
        """All lines from the beginning of the piece on, without their breaks, with their numbers."""
        while True:
            *lines, rest = self.text.split("\n")
            first, self._line, self.text = self._line, self._line + len(lines), rest
            yield from enumerate(lines, first)
            if not self.more():
                yield self._line, self.text
                return

    def at(self, position: int) -> tuple[int, int]:
        """Line and column, counted from 1."""
        breaks = self.text.count("\n", 0, position)
        if not breaks:
            return self._line, self._column + position
        return self._line + breaks, position - self.text.rfind("\n", 0, position)
