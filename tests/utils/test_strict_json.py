"""A key that occurs twice in one object is an error with its place; everything else is what Python's decoder reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.utils.strict_json import RepeatedKeyError, loads, raw_decode, repeated_keys, unique_keys

KEYS = st.sampled_from(["a", "b", '"', "\\", ":", "{", "é", "\n", "a b", '\\":'])


class Pairs(list[tuple[str, Any]]):
    """An object with its keys as they come."""


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | KEYS
objects = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.lists(st.tuples(KEYS, inner), max_size=4).map(Pairs),
    max_leaves=20,
)


def written(value: Any, blank: str) -> str:
    """As JSON, with a blank wherever one may stand."""
    if isinstance(value, Pairs):
        inner = f"{blank},{blank}".join(f"{json.dumps(key)}{blank}:{blank}{written(one, blank)}" for key, one in value)
        return f"{{{blank}{inner}{blank}}}"
    if isinstance(value, list):
        return f"[{blank}{f'{blank},{blank}'.join(written(one, blank) for one in value)}{blank}]"
    return json.dumps(value)


def twice(value: Any) -> bool:
    if isinstance(value, Pairs):
        return len({key for key, _ in value}) < len(value) or any(twice(one) for _, one in value)
    return isinstance(value, list) and any(map(twice, value))


@given(objects, st.sampled_from(["", " ", "\n", " \t\r\n"]))
def test_any_value(value: Any, blank: str) -> None:
    text = written(value, blank)
    if not twice(value):
        assert loads(text) == raw_decode(text + " ", 0)[0] == json.loads(text)
        assert list(repeated_keys(text)) == []
        return
    with pytest.raises(RepeatedKeyError) as caught:
        loads(text)
    error = caught.value
    assert text.split("\n")[error.line - 1][error.column - 1 :].startswith('"')
    end = json.JSONDecoder().raw_decode(text, error.position)
    assert end[0] == error.key
    assert text[end[1] :].lstrip().startswith(":")
    with pytest.raises(RepeatedKeyError) as again:
        raw_decode("xyz" + text, 3)
    assert again.value.position == error.position + 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "'a' occurs twice in one object, at column 10"),
        (
            '{"b": "a", "a": 1,\n "c": [{"a": 1, "x": {}, "\\u0061": 2}]}',
            "'a' occurs twice in one object, at line 2, column 26",
        ),
        ('{"' + "k" * 99 + '": 1, "' + "k" * 99 + '": 2}', f"'{'k' * 59}... occurs twice in one object, at column 108"),
    ],
)
def test_what_is_said(text: str, said: str) -> None:
    with pytest.raises(RepeatedKeyError) as caught:
        loads(text)
    assert str(caught.value) == said


def test_all_of_them() -> None:
    text = '{"a": {"b": 1, "b": 2}, "a": [{"c": 1}, {"c": 1, "c": 2, "c": 3}]}'
    assert [(key, text[position - 1 :][:5]) for key, position in repeated_keys(text)] == [
        ("b", ' "b":'),
        ("a", ' "a":'),
        ("c", ' "c":'),
        ("c", ' "c":'),
    ]


def test_without_a_place() -> None:
    assert json.loads('{"a": {"b": 1}, "b": 2}', object_pairs_hook=unique_keys) == {"a": {"b": 1}, "b": 2}
    with pytest.raises(ValueError, match=r"^'b' occurs twice in one object$"):
        json.loads('{"a": {"b": 1, "b": 2}}', object_pairs_hook=unique_keys)
