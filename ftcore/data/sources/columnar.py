"""Converts values of columnar tables to JSON values.

In a table all objects of a column have the same keys, and a missing key is stored as null. A missing key and a null
cannot be told apart, so keys of objects whose value is null are left out. Nulls in lists and maps are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ftcore.data.sources.row_size import size_of, too_large
from ftcore.errors import Problem, RowError, UsageError, quoted
from ftcore.utils.strict_json import RepeatedKeyError, loads

Convert = Callable[[Any], Any]
_AT_ONCE = 1024
"""Rows that are converted at a time."""


class _TwiceInMapError(Exception):
    """A map has a key twice."""


def rows(arrow: Any, batches: Iterable[Any], path: str, most: int) -> Iterator[dict[str, Any] | RowError]:
    """The rows of record batches.

    Args:
        arrow: the pyarrow module.
        batches: record batches of one schema.
        path: for messages.
        most: limit of a row, in bytes.

    Raises:
        UsageError: two columns, or two keys of an object, have one name.
    """
    columns: dict[str, Convert] | None = None
    for batch in batches:
        if columns is None:
            _check_names(arrow, [(field.name, field.type) for field in batch.schema], path)
            found = {field.name: _converter(arrow, field.type) for field in batch.schema}
            columns = {name: convert for name, convert in found.items() if convert is not None}
        for start in range(0, batch.num_rows, _AT_ONCE):
            piece = batch.slice(start, _AT_ONCE)
            large = piece.nbytes > most  # otherwise no row is over the limit
            for row in piece.to_pylist():
                if large and (size := size_of(row)) > most:
                    yield too_large(size, most, "")
                else:
                    yield _converted(row, columns)


def _converted(row: dict[str, Any], columns: Mapping[str, Convert]) -> dict[str, Any] | RowError:
    for name, convert in columns.items():
        try:
            row[name] = convert(row[name])
        except (RepeatedKeyError, _TwiceInMapError) as error:
            return RowError(f"{name}: {error}", field=name, value=row, cure="keep one of the two")
        except (ValueError, RecursionError) as error:
            return RowError(f"{name} is not JSON: {error}", field=name, value=row, cure="write it as JSON")
    return row


def _check_names(arrow: Any, fields: Sequence[tuple[str, Any]], path: str, within: str = "") -> None:
    names = [name for name, _ in fields]
    for name, kind in fields:
        if names.count(name) > 1:
            what = f"key {quoted(name)} of {quoted(within)}" if within else f"column {quoted(name)}"
            raise UsageError(Problem(f"{what} appears twice", path, "rename one of them"))
        _check_names(arrow, _inner(arrow, kind), path, f"{within}.{name}" if within else name)


def _inner(arrow: Any, kind: Any) -> Sequence[tuple[str, Any]]:
    """The fields of a struct type, also inside nested lists."""
    if arrow.types.is_struct(kind):
        return [(kind.field(number).name, kind.field(number).type) for number in range(kind.num_fields)]
    return _inner(arrow, kind.value_type) if _is_list(arrow, kind) or arrow.types.is_dictionary(kind) else []


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    known = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_one(kind) for is_one in known)


def _converter(arrow: Any, kind: Any) -> Convert | None:
    """The conversion of this type to JSON values; None if the values are the same."""
    types = arrow.types
    if types.is_struct(kind):
        return _of_object({name: _converter(arrow, inner) for name, inner in _inner(arrow, kind)})
    if types.is_map(kind):
        return _of_map(_converter(arrow, kind.item_type))
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _converter(arrow, kind.value_type)
    if types.is_union(kind):
        return without_nulls
    if _is_list(arrow, kind):
        convert = _converter(arrow, kind.value_type)
        return None if convert is None else _of_list(convert)
    if isinstance(kind, arrow.BaseExtensionType):
        # `datasets` stores its type Json this way: these nulls were written by the user.
        return _or_null(loads) if kind.extension_name == "arrow.json" else _converter(arrow, kind.storage_type)
    return None


def _or_null(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _of_object(converters: Mapping[str, Convert | None]) -> Convert:
    def convert(value: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for key, inner in value.items():
            if inner is not None:
                own = converters[key]
                found[key] = inner if own is None else own(inner)
        return found

    return _or_null(convert)


def _of_list(convert: Convert) -> Convert:
    return _or_null(lambda value: [convert(inner) for inner in value])


def _of_map(convert: Convert | None) -> Convert:
    def converted(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if str(key) in found:
                raise _TwiceInMapError(f"{quoted(key)} appears twice in one map")
            found[str(key)] = value if convert is None else convert(value)
        return found

    return _or_null(converted)


def without_nulls(value: Any) -> Any:
    """The value without keys whose value is null; for values without a known type."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value


def hub_row(row: Mapping[str, Any], features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Converts a row of the library ``datasets``.

    Args:
        row: column -> value; images and other media are objects of their own classes.
        features: the features of the dataset; None if unknown.
    """
    return {column: _decoded(value, (features or {}).get(column)) for column, value in row.items()}


def _decoded(value: Any, feature: Any) -> Any:
    """Handles types as `_converter` does; ``Json`` is decoded already and kept unchanged."""
    if type(feature).__name__ == "Json":
        return value
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {key: _decoded(inner, feature.get(key)) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple) and feature is not None:
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_decoded(one, inner) for one in value]
    return without_nulls(value)
