"""Reads JSON files of others, with a limit on nesting."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Maximum nesting of lists and objects. Recursive functions need a few calls per level, and Python allows 1,000 calls.
JSON schemas of tools have about 10 levels, configs of models 4."""


def too_deep(value: Any, limit: int = DEEPEST) -> bool:
    """Whether lists and objects nest deeper than a limit."""
    level: list[Any] = [value]
    for _ in range(limit):
        level = [item for value in level for item in _items(value) if isinstance(item, dict | list | tuple)]
        if not level:
            return False
    return any(True for value in level for _ in _items(value))


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def read_object(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it cannot be read, is not a JSON object, or nests too deep; the message fits after the file's name.
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
        raise ValueError(f"holds {type(found).__name__}, not an object")
    if too_deep(found):
        raise ValueError(f"nests more than {DEEPEST} levels deep")
    return found
