"""The rows of CSV and TSV text, each with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, TextIO

from ftcore.api.samples import Place
from ftcore.data.sources.row_size import byte_count, too_large
from ftcore.errors import Problem, RowError, UsageError, listed, quoted

Rows = Iterator[tuple[Place, dict[str, Any] | RowError]]

_PIECE = 1 << 16
"""Characters that are read at a time of a row that is passed over."""


def check_no_nul(file: str, number: int, line: str) -> None:
    """Refuses a file with a NUL byte.

    Raises:
        UsageError: with its line and column.
    """
    if (position := line.find("\0")) >= 0:
        hint = "the file is damaged or not text; fetch it again"
        raise UsageError(Problem("a NUL byte", f"{file}:{number}:{position + 1}", hint))


def separated_rows(file: str, stream: TextIO, delimiter: str, most: int) -> Rows:
    """The rows of a CSV or TSV file.

    Args:
        file: for places.
        stream: its line breaks must come untranslated.
        delimiter: between cells.
        most: bytes of a row; a larger one comes out as a `RowError`.

    Raises:
        UsageError: the first line does not name columns, or a quote stands where none may; with its line.
    """
    # A cell may hold a whole document: the module's limit of 128 KiB is lifted (the largest C long on Windows).
    csv.field_size_limit(2**31 - 1)
    source = _Lines(file, stream, most)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    row = 0
    try:
        header = _header(file, source.record(reader))
        while (cells := source.record(reader)) is not None:
            if cells:
                row += 1
                yield Place(file, row, source.first), _cells(header, cells)
    except csv.Error as error:
        hint = 'is a quote left open? a quote inside is ""'
        raise UsageError(Problem(f"not CSV: {error}", f"{file}:{source.number}", hint)) from error


class _TooLargeError(Exception):
    """A record of a CSV file goes on beyond its bound."""


class _Lines:
    """The lines of a CSV file for the module csv, so many bytes of a record at most.

    Attributes:
        number: of the last line that was read, from 1.
        first: of the first line of the last record.
    """

    def __init__(self, file: str, stream: TextIO, most: int) -> None:
        self._file, self._stream, self._most = file, stream, most
        self.number, self.first = 0, 0
        self._record: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(self._most + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._record.append(line)
        self._size += byte_count(line)
        if self._size > self._most:
            raise _TooLargeError
        check_no_nul(self._file, self.number, line)
        return line

    def record(self, reader: Iterator[list[str]]) -> list[str] | RowError | None:
        """The cells of the next record, none of a blank line; None at the end of the file."""
        self._record, self._size, self.first = [], 0, self.number + 1
        try:
            return next(reader, None)
        except _TooLargeError:
            size = self._skip()
            return too_large(size, self._most, self._record[0], "close a quote that is left open, split it")

    def _skip(self) -> int:
        """Passes over the rest of the record, to the end of a line outside quotes, and returns the record's bytes."""
        quotes, piece = sum(line.count('"') for line in self._record), self._record[-1]
        while quotes % 2 or not piece.endswith(("\n", "\r")):
            ended = piece.endswith(("\n", "\r"))
            if not (piece := self._stream.readline(_PIECE)):
                break
            self.number += ended
            self._size, quotes = self._size + byte_count(piece), quotes + piece.count('"')
        return self._size


def _header(file: str, header: list[str] | RowError | None) -> list[str]:
    """The names of the columns."""
    if isinstance(header, RowError):
        raise UsageError(Problem(f"the first line names the columns, and {header.reason}", f"{file}:1", header.cure))
    for cell in header or ():
        if not cell.strip() or (header or []).count(cell) > 1:
            reason = f"column {quoted(cell)} stands twice" if cell.strip() else "a column has no name"
            hint = f"name each column once; it reads: {listed(header or ())}"
            raise UsageError(Problem(f"{reason} in the first line", f"{file}:1", hint))
    return header or []


def _cells(header: list[str], cells: list[str] | RowError) -> dict[str, Any] | RowError:
    if isinstance(cells, RowError):
        return cells
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    return RowError(
        f"{len(cells)} cells, where the first line names {len(header)} columns",
        value=cells[-1],
        cure='put quotes around cells that hold the separator or line breaks, and write "" for a quote inside',
    )
