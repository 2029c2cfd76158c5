"""The size limit of a row: tokenising a row of 200 MB takes 15 GB, however few of its tokens are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftcore.errors import RowError

MAX_ROW_BYTES = 1 << 24
"""Default of ``max_row_bytes``."""
HEAD = 200
"""Characters of a row over the limit that are kept for the message."""


def byte_count(text: str) -> int:
    """The bytes of a text in UTF-8; without encoding it if it is ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def size_of(value: Any) -> int:
    """The bytes of all strings in a value, and 8 for each other value."""
    if isinstance(value, str):
        return byte_count(value)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(size_of(key) + size_of(inner) for key, inner in value.items())
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 8


def too_large(size: int, most: int, head: str, cure: str = "") -> RowError:
    """The error of a row over the limit.

    Args:
        size: the size of the row, in bytes.
        most: the limit, in bytes.
        head: the start of the row.
        cure: a further fix.
    """
    memory = "tokenising takes up to 150 bytes of memory per byte"
    cure = f"{cure or 'split the row'}, or write max_row_bytes: {size} ({memory})"
    return RowError(f"the row has {size:,} bytes; max_row_bytes is {most:,}", value=head[:HEAD], cure=cure)
