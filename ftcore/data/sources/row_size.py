"""How large a row may be: one of 200 MB takes 15 GB when it is tokenised, however few of its tokens are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftcore.errors import RowError

MAX_ROW_BYTES = 1 << 24
"""Unless ``max_row_bytes`` says otherwise."""
HEAD = 200
"""Characters of such a row that are kept, to tell which it is."""


def byte_count(text: str) -> int:
    """Of a text in UTF-8; at once where it is ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def size_of(value: Any) -> int:
    """Bytes of all texts in a value, and 8 for everything else."""
    if isinstance(value, str):
        return byte_count(value)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(size_of(key) + size_of(inner) for key, inner in value.items())
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 8


def too_large(size: int, most: int, head: str, cure: str = "") -> RowError:
    """What is wrong with such a row.

    Args:
        size: its bytes.
        most: how many there may be.
        head: how it begins.
        cure: what else may help.
    """
    cure = f"{cure or 'split it'}, or write max_row_bytes: {size} (a byte takes up to 150 bytes of memory)"
    return RowError(f"the row has {size:,} bytes; max_row_bytes is {most:,}", value=head[:HEAD], cure=cure)
