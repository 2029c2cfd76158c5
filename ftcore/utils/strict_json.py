"""A JSON decoder that refuses repeated keys, of which Python's decoder silently takes the last.

The check adds 0.3 us to the 3.2 us of a flat row, 3 us to the 5.9 us of 8 turns, 13 us to the 19 us of 30 objects.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ftcore.errors import quoted

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Line and column of a position in a text, counted from 1."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


class RepeatedKeyError(ValueError):
    """An object has a key twice.

    Attributes:
        key: the key; the message shortens it.
        position: position of its second occurrence in the text, from 0.
        line, column: the same, from 1.
    """

    def __init__(self, key: str, text: str, position: int) -> None:
        self.key, self.position = key, position
        self.line, self.column = line_and_column(text, position)
        line = f"line {self.line}, " if "\n" in text.strip() else ""
        super().__init__(f"{quoted(key)} occurs twice in one object, at {line}column {self.column}")


class _Repeated(Exception):
    """Raised inside the decoder, where the position is unknown."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Repeated
    return found


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for JSON whose position in a file does not matter, such as a request.

    Raises:
        ValueError: an object has a key twice.
    """
    try:
        return _once(pairs)
    except _Repeated:
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"{quoted(twice)} occurs twice in one object") from None


_decoder = json.JSONDecoder(object_pairs_hook=_once)


def loads(text: str) -> Any:
    """Decodes a JSON text.

    Raises:
        RepeatedKeyError: an object has a key twice.
        json.JSONDecodeError: the text is not JSON.
        ValueError, RecursionError: a number has too many digits, or values nest too deep.
    """
    try:
        return _decoder.decode(text)
    except _Repeated:
        raise _first(text, 0) from None


def raw_decode(text: str, position: int) -> tuple[Any, int]:
    """Decodes the value at a position; returns it with the position after it.

    Raises:
        ValueError, RecursionError: as `loads`.
    """
    try:
        return _decoder.raw_decode(text, position)
    except _Repeated:
        raise _first(text, position) from None


def _first(text: str, start: int) -> RepeatedKeyError:
    key, position = next(repeated_keys(text, start))
    return RepeatedKeyError(key, text, position)


def repeated_keys(text: str, start: int = 0) -> Iterator[tuple[str, int]]:
    """All repeated keys with their positions; the text must be valid JSON up to there."""
    open_: list[set[str] | None] = []  # for each open object its keys so far; None for a list
    before: tuple[str, int] | None = None
    for token in _TOKEN.finditer(text, start):
        match token[0]:
            case "{":
                open_.append(set())
            case "[":
                open_.append(None)
            case "}" | "]":
                open_.pop()
            case ":" if before and open_ and (keys := open_[-1]) is not None:
                key = json.loads(before[0], strict=False)
                if key in keys:
                    yield key, before[1]
                keys.add(key)
        before = (token[0], token.start()) if token[0][0] == '"' else None
