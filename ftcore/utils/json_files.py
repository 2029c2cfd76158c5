"""JSON that somebody else wrote, read with a bound on how deep it nests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Levels of lists and objects that are taken: what goes through such values calls itself for each level, a few times,
and Python ends at 1,000 calls. JSON schemas of tools have about 10, configs of models 4."""


def too_deep(value: Any, limit: int = DEEPEST) -> bool:
    """Whether lists and objects of a value lie more than so many levels inside each other."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [item for one in level for item in _items(one) if isinstance(item, dict | list | tuple)]
        if not level:
            return False
    return any(True for one in level for _ in _items(one))


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def read_object(file: Path) -> Mapping[str, Any]:
    """The object that a file holds.

    Raises:
        ValueError: it cannot be read, is no JSON object, or nests too deep; in words that follow the file's name.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot be read: byte {error.start} is not UTF-8") from error
    except RecursionError:
        raise ValueError(f"nests more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"holds no object, but {type(found).__name__}")
    if too_deep(found):
        raise ValueError(f"nests more than {DEEPEST} levels deep")
    return found
