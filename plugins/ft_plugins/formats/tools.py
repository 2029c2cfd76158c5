"""Reads the tools of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ft_plugins.formats.fields import items, kind_of, parsed
from ftcore.errors import RowError


def tools(row: Mapping[str, Any], column: str) -> tuple[Mapping[str, Any], ...]:
    """The tools in OpenAI's format; bare functions and JSON strings are accepted as well.

    Raises:
        RowError: the column has other values.
    """
    value = row.get(column)
    if not value or (isinstance(value, str) and not value.strip()):
        return ()
    found = []
    for number, tool in enumerate(items(parsed(value, column), column)):
        place = f"{column}[{number}]"
        tool = parsed(tool, place)
        if not isinstance(tool, Mapping) or not ("function" in tool or "name" in tool):
            cure = 'write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
            raise RowError(
                f"{place} is {kind_of(tool)}, not the description of a function", field=place, value=tool, cure=cure
            )
        found.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(found)
