"""Fields of a row, checked: the pieces that the formats share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftcore.errors import RowError, listed, short
from ftcore.utils.strict_json import RepeatedKeyError, loads

_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}


def kind_of(value: object) -> str:
    """What a value is, in JSON's words."""
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else _KINDS.get(type(value), type(value).__name__)


def text(value: object, field: str) -> str:
    """The value, which must be a text.

    Raises:
        RowError: it is something else.
    """
    if isinstance(value, str):
        return value
    cure = (
        f"write it in quotes: {json.dumps(short(str(value)))}" if isinstance(value, int | float) else "write a string"
    )
    raise RowError(f"{field} is {kind_of(value)}, not a string", field=field, value=value, cure=cure)


def optional_text(row: Mapping[str, Any], column: str) -> str:
    """The column's text; empty when the row has no such column, or null in it."""
    value = row.get(column)
    return "" if value is None else text(value, column)


def required(row: Mapping[str, Any], column: str, cure: str) -> Any:
    """The column's value, whatever it is except null.

    Raises:
        RowError: the row has no such column, or null in it; the columns that it has are named.
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
    """What is said where a role that is needed has no column."""
    cure = "name one in dataset_info.json; a column has one role only"
    return RowError("no column is assigned to this role", field="columns", cure=f"{cure}: {{role: column}}")


def items(value: object, field: str) -> Sequence[Any]:
    """The value, which must be a list.

    Raises:
        RowError: it is something else.
    """
    if isinstance(value, list | tuple):
        return value
    raise RowError(f"{field} is {kind_of(value)}, not a list", field=field, value=value, cure="write a list: [...]")


def parsed(value: object, field: str) -> Any:
    """The value, decoded when it is JSON in a text.

    Raises:
        RowError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except RepeatedKeyError as error:
        raise RowError(f"{field}: {error}", field=field, value=value, cure="keep one of the two") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{field} is not JSON: {error}", field=field, value=value, cure="write it as JSON") from error
