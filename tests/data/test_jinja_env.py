"""What a chat template is given."""

from __future__ import annotations

from datetime import date
from enum import IntEnum, StrEnum
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from ftcore.data.chat_template.jinja_env import plain_data


class Word(StrEnum):
    ONE = "one"


class Number(IntEnum):
    TWO = 2


class Share(float):
    def __float__(self) -> float:
        raise AssertionError("a subclass's own method was called")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        ({"a": [1, 2.5, ("b", None)]}, {"a": [1, 2.5, ("b", None)]}),
        ({Word.ONE: [Number.TWO, Share(0.5)]}, {"one": [2, 0.5]}),
        ([np.bool_(False), np.int64(3), np.float32(0.5), np.str_("x")], [False, 3, 0.5, "x"]),
        ([b"x", BytesIO(), date(2026, 11, 30), np.zeros(2)], ["<bytes>", "<BytesIO>", "<date>", "<ndarray>"]),
    ],
)
def test_values_are_of_plain_types(value: Any, expected: Any) -> None:
    found = plain_data(value)
    assert found == expected
    assert types(found) == types(expected)


def types(value: Any) -> Any:
    if isinstance(value, dict):
        return [(type(key), types(item)) for key, item in value.items()]
    return [type(value), *map(types, value)] if isinstance(value, list | tuple) else type(value)


def test_transformers_makes_the_same_of_them() -> None:
    """Where it does so, from 5.22 on."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    if not hasattr(utils, "_plain_template_data"):
        pytest.skip("this transformers gives templates the values themselves")
    values = {Word.ONE: [Number.TWO, 0.5, None, True, np.bool_(False), b"x", ({"a": "b"},)], "image": BytesIO()}
    assert plain_data(values) == utils._plain_template_data(values)
