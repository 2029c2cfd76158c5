"""Which kinds of sample a dataset can be read as, for the built-in formats and for a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from ft_plugins.formats import FORMATS
from ftcore.api.components import DatasetFormat
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.samples import Chat, Message, Preference, Sample, Text
from ftcore.data.formats.sample_kinds import readings
from ftcore.errors import RowError

INSTRUCTION, MESSAGES, SHAREGPT, COMPLETION, TEXT = FORMATS
QUESTION = [{"role": "user", "content": "q"}]
TURNS = [*QUESTION, {"role": "assistant", "content": "r"}]
PAIR = {"chosen": "c", "rejected": "d"}


def kinds(format_: DatasetFormat, row: dict[str, Any], **spec: Any) -> list[str]:
    return [reading.kind for reading in readings(DatasetSpec(name="a", path=None, **spec), format_, row)]


@pytest.mark.parametrize(
    ("format_", "row", "spec", "expected"),
    [
        (INSTRUCTION, {"instruction": "q", "output": "r"}, {}, ["Chat", "Prompt"]),
        (INSTRUCTION, {"instruction": "q"}, {}, ["Prompt"]),
        (INSTRUCTION, {"instruction": "q", **PAIR}, {}, ["Preference", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "output": "r", **PAIR}, {}, ["Preference", "Chat", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "output": "r", **PAIR}, {"ranking": True}, ["Preference", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "chosen": "c"}, {"ranking": True}, ["Preference", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "output": "r", "kto_tag": "?"}, {}, ["Feedback", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "output": "r", "label": False}, {}, ["Feedback", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "output": "r", "label": 3}, {}, ["Chat", "Prompt"]),
        (INSTRUCTION, {"instruction": "q", "output": "r", "label": "False"}, {}, ["Feedback", "Prompt"]),
        (
            INSTRUCTION,
            {"instruction": "q", "output": "r", "kto_tag": True},
            {"columns": {"kto_tag": ""}},
            ["Chat", "Prompt"],
        ),
        (MESSAGES, {"messages": TURNS}, {}, ["Chat", "Prompt"]),
        (MESSAGES, {"messages": QUESTION}, {}, ["Chat", "Prompt"]),  # which rows lack an answer is said row by row
        (MESSAGES, {"messages": QUESTION, **PAIR}, {}, ["Preference", "Prompt"]),
        (MESSAGES, {"messages": TURNS, **PAIR}, {}, ["Preference", "Chat", "Prompt"]),
        (COMPLETION, {"prompt": "q", "completion": "r"}, {}, ["Chat", "Prompt"]),
        (TEXT, {"text": "t"}, {}, ["Text"]),
    ],
)
def test_built_in_formats(format_: DatasetFormat, row: dict[str, Any], spec: Any, expected: list[str]) -> None:
    assert kinds(format_, row, **spec) == expected


def test_roles_that_are_not_read_are_left_out() -> None:
    row = {"instruction": "q", "output": "r", "label": True, **PAIR}
    special = {"response", "chosen", "rejected", "kto_tag"}
    found = {
        reading.kind: {role: reading.columns[role] for role in reading.columns.keys() & special}
        for reading in readings(DatasetSpec(name="a", path=None), INSTRUCTION, row)
    }
    assert found == {
        "Preference": {"chosen": "chosen", "rejected": "rejected"},
        "Feedback": {"response": "output", "kto_tag": "label"},
        "Prompt": {},
    }


@dataclass(frozen=True, kw_only=True)
class Strange(DatasetFormat):
    """Has roles of its own, and does not say what it makes."""

    name: str = "strange"
    summary: str = "a"

    def matches(self, columns: frozenset[str]) -> bool:
        return True

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample:
        made = row["a"]
        if made is None:
            raise RowError("a is null", field="a", cure="write it")
        return made


def test_a_format_that_does_not_say_what_it_makes() -> None:
    chat = Chat((Message("user", "q"), Message("assistant", "r")))
    pair = Preference(Chat((Message("user", "q"),)), Message("assistant", "c"), Message("assistant", "d"))
    assert kinds(Strange(), {"a": chat}) == ["Chat", "Prompt"]
    assert kinds(Strange(), {"a": pair}) == ["Preference"]
    assert kinds(Strange(), {"a": Text("t")}) == ["Text"]
    assert kinds(Strange(), {"a": None}) == ["Chat", "Prompt"]


def test_a_row_of_another_kind_than_the_first() -> None:
    chat = Chat((Message("user", "q"), Message("assistant", "r")))
    (reading, _) = readings(DatasetSpec(name="a", path=None), Strange(), {"a": chat})
    with pytest.raises(RowError) as caught:
        reading.read({"a": Text("t")})
    assert caught.value.reason == "the row holds texts; the first rows hold conversations that end with an answer"
    assert caught.value.cure == "move such rows to a separate dataset"
