"""Reads rows of CSV and TSV files, each with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, TextIO

from ftcore.api.samples import Place
from ftcore.data.sources.row_size import byte_count, too_large
from ftcore.errors import Problem, RowError, UsageError, listed, quoted

Rows = Iterator[tuple[Place, dict[str, Any] | RowError]]

_PIECE = 1 << 16
"""Characters per read while a row is skipped."""


def check_no_nul(file: str, number: int, line: str) -> None:
    """Raises an error for a NUL byte.

    Raises:
        UsageError: with its line and column.
    """
    if (position := line.find("\0")) >= 0:
        hint = "the file is damaged or not text; download it again"
        raise UsageError(Problem("a NUL byte", f"{file}:{number}:{position + 1}", hint))


def separated_rows(file: str, stream: TextIO, delimiter: str, most: int) -> Rows:
    """The rows of a CSV or TSV file.

    Args:
        file: for places.
        stream: opened without newline translation.
        delimiter: between cells.
        most: limit of a row, in bytes; a larger row is yielded as a `RowError`.

    Raises:
        UsageError: the first line does not name columns, or a quote is misplaced; with its line.
    """
    # A cell may contain a whole document, so the module's limit of 128 KiB is raised (to C's long on Windows).
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
        hint = 'close each quote; write a quote inside a cell as ""'
        raise UsageError(Problem(f"not CSV: {error}", f"{file}:{source.number}", hint)) from error


class _TooLargeError(Exception):
    """A record of a CSV file is larger than the limit."""


class _Lines:
    """The lines of a CSV file for the csv module, with a limit on the bytes of a record.

    Attributes:
        number: number of the last line read, from 1.
        first: number of the first line of the last record.
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
        """The cells of the next record, empty for a blank line; None at the end of the file."""
        self._record, self._size, self.first = [], 0, self.number + 1
        try:
            return next(reader, None)
        except _TooLargeError:
            size = self._skip()
            return too_large(size, self._most, self._record[0], "close the open quote, split the row")

    def _skip(self) -> int:
        """Skips to the end of the record, a line end outside quotes, and returns the size of the record in bytes."""
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
        raise UsageError(Problem(f"the first line must name the columns: {header.reason}", f"{file}:1", header.cure))
    for cell in header or ():
        if not cell.strip() or (header or []).count(cell) > 1:
            reason = f"column {quoted(cell)} appears twice" if cell.strip() else "a column has no name"
            hint = f"write each column name once; the first line has: {listed(header or ())}"
            raise UsageError(Problem(f"{reason} in the first line", f"{file}:1", hint))
    return header or []


def _cells(header: list[str], cells: list[str] | RowError) -> dict[str, Any] | RowError:
    if isinstance(cells, RowError):
        return cells
    if len(cells) == len(header):
        return dict(zip(header, cells, strict=True))
    return RowError(
        f"the row has {len(cells)} cells, and the first line names {len(header)} columns",
        value=cells[-1],
        cure='quote cells that contain the separator or line breaks, and write a quote inside as ""',
    )
