"""Checks of row fields, shared by the formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftcore.errors import RowError, listed, short
from ftcore.utils.strict_json import RepeatedKeyError, loads

_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


def kind_of(value: object) -> str:
    """The JSON type of a value, with its article."""
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else _KINDS.get(type(value), type(value).__name__)


def text(value: object, field: str) -> str:
    """Checks that the value is a string.

    Raises:
        RowError: the value has another type.
    """
    if isinstance(value, str):
        return value
    cure = (
        f"write it in quotes: {json.dumps(short(str(value)))}" if isinstance(value, int | float) else "write a string"
    )
    raise RowError(f"{field} is {kind_of(value)}, not a string", field=field, value=value, cure=cure)


def optional_text(row: Mapping[str, Any], column: str) -> str:
    """The string of a column; empty if the column is missing or null."""
    value = row.get(column)
    return "" if value is None else text(value, column)


def required(row: Mapping[str, Any], column: str, cure: str) -> Any:
    """The value of a column, which must not be null.

    Raises:
        RowError: the column is missing or null; the message lists the existing columns.
    """
    if not column:
        raise unnamed()
    value = row.get(column)
    if value is None:
        there = f"it has {listed(row)}" if row else "it is empty"
        reason = f"{column} is null" if column in row else f"the row has no {column}: {there}"
        raise RowError(reason, field=column, value=value, cure=cure)
    return value


def unnamed() -> RowError:
    """The error for a required role without a column."""
    cure = "name one in dataset_info.json; a column has one role only"
    return RowError("no column is assigned to this role", field="columns", cure=f"{cure}: {{role: column}}")


def items(value: object, field: str) -> Sequence[Any]:
    """Checks that the value is a list.

    Raises:
        RowError: the value has another type.
    """
    if isinstance(value, list | tuple):
        return value
    raise RowError(f"{field} is {kind_of(value)}, not a list", field=field, value=value, cure="write a list: [...]")


def parsed(value: object, field: str) -> Any:
    """Decodes a JSON string; other values are returned unchanged.

    Raises:
        RowError: the string is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except RepeatedKeyError as error:
        raise RowError(f"{field}: {error}", field=field, value=value, cure="keep one of the two") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{field} is not JSON: {error}", field=field, value=value, cure="write it as JSON") from error
