"""A column that is named for one role serves no other: every format, every pair of roles, every pair of tags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest

from ft_plugins.formats import FORMATS
from ftcore.api.components import DatasetFormat
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.data.formats.sample_kinds import readings
from ftcore.data.sources.dataset_info import KEY_TAGS
from ftcore.data.sources.resolve import resolve
from ftcore.errors import RowError

TURNS = (
    {"role_tag": "user", "content_tag": "q"},
    {"role_tag": "assistant", "content_tag": "r"},
    {"role_tag": "user", "content_tag": "t"},
    {"role_tag": "assistant", "content_tag": "u"},
)
VALUES = {
    "prompt": "p",
    "query": "i",
    "response": "r",
    "system": "s",
    "history": [["h", "j"]],
    "tools": [{"name": "f"}],
    "images": None,
    "videos": None,
    "audios": None,
    "chosen": "c",
    "rejected": "d",
    "kto_tag": True,
}
SETS = (set(), {"response"}, {"response", "kto_tag"}, {"chosen", "rejected"}, {"response", "chosen", "rejected"})
"""Which of the special roles rows have."""


def values(format_: DatasetFormat, tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    names = {"role_tag": "role", "content_tag": "content", **format_.tags, **(tags or {})}
    turns = [{names[key]: names.get(f"{value}_tag", value) for key, value in turn.items()} for turn in TURNS]
    return VALUES | {"messages": turns}


def samples(format_: DatasetFormat, row: Mapping[str, Any], **told: Any) -> list[Any]:
    """What every reading of a row makes of it."""
    found: list[Any] = []
    for reading in readings(DatasetSpec(name="a", path=None, **told), format_, row):
        try:
            found.append((reading.kind, reading.read(row)))
        except RowError:
            found.append((reading.kind, "refused"))
    return found


@pytest.mark.parametrize("special", SETS, ids=lambda roles: "-".join(sorted(roles)) or "prompt")
@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_a_column_serves_one_role(format_: DatasetFormat, special: set[str]) -> None:
    """What stands in another role's column is read as what stands in a column of any name."""
    roles = [role for role in format_.columns if role in special or role not in ("response", "chosen", "kto_tag")]
    all_values, read = values(format_), 0
    for role, other in permutations(roles, 2):
        default = format_.columns[other]
        rest = {format_.columns[one]: all_values[one] for one in roles if one not in (role, other)}
        found = samples(format_, rest | {default: all_values[role]}, columns={role: default})
        plain = samples(format_, rest | {"zzz": all_values[role]}, columns={role: "zzz", other: ""})
        assert found == plain, (role, other)
        read += sum(sample != "refused" for _, sample in found)
    assert read > 20 or format_.name == "text"


@pytest.mark.parametrize("format_", [one for one in FORMATS if "messages" in one.columns], ids=lambda one: one.name)
def test_a_key_or_a_role_name_serves_one_tag(format_: DatasetFormat) -> None:
    names = dict(format_.tags)
    for tag, other in permutations(names, 2):
        if (tag in KEY_TAGS) != (other in KEY_TAGS):
            continue
        found, plain = (
            samples(format_, {format_.columns["messages"]: values(format_, told)["messages"]}, tags=told)
            for told in ({tag: names[other]}, {tag: names[other], other: ""})
        )
        assert found == plain, (tag, other)


@pytest.mark.parametrize("key", ["thinking", "reasoning_content", "weight", "loss", "tool_calls"])
@pytest.mark.parametrize("tag", KEY_TAGS)
def test_a_key_that_is_named_is_not_read_as_a_thought_or_a_weight(key: str, tag: str) -> None:
    format_ = next(one for one in FORMATS if one.name == "messages")
    turns = values(format_, {tag: key})["messages"]
    named = values(format_)["messages"]
    assert samples(format_, {"messages": turns}, tags={tag: key}) == samples(format_, {"messages": named})


@pytest.mark.parametrize("row", [{"label": True}, {"label": "false"}, {"kto_tag": True}])
def test_a_mark_that_is_another_role_marks_nothing(row: dict[str, Any]) -> None:
    (column,) = row
    format_ = FORMATS[0]
    found = [kind for kind, _ in samples(format_, {"instruction": "q", **row}, columns={"response": column})]
    assert found == ["Chat", "Prompt"]


def test_a_column_without_a_name_is_nobodys() -> None:
    row = {"instruction": "q", "": "x", "output": "r"}
    assert samples(FORMATS[0], row, columns={"query": ""}) == samples(FORMATS[0], {"instruction": "q", "output": "r"})


@pytest.mark.parametrize("what", ["columns", "tags"])
@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_two_roles_with_one_column_are_an_error(tmp_path: Path, format_: DatasetFormat, what: str) -> None:
    (tmp_path / "a.json").write_text("[]")
    names = format_.columns if what == "columns" else format_.tags
    for number, (one, other) in enumerate(combinations(names, 2)):
        if what == "tags" and (one in KEY_TAGS) != (other in KEY_TAGS):
            continue
        entry = {"file_name": "a.json", what: {one: "x", other: "x"}}
        (tmp_path / "dataset_info.json").write_text(json.dumps({f"d{number}": entry}, indent=1))
        specs, (problem,) = resolve([f"d{number}"], dataset_dir=tmp_path)
        assert specs == ()
        assert problem.where == f"{tmp_path}/dataset_info.json:6"
        assert problem.message == f"dataset 'd{number}': {what} assigns 'x' to both {one} and {other}"
        assert problem.hint.startswith("write another name")


def test_the_row_of_the_report(tmp_path: Path, make_plan: Any, tokenizer: Any) -> None:
    from ftcore.data.pipeline.loading import chat_datasets

    (tmp_path / "a.jsonl").write_text('{"input": "2+2?", "output": "4"}')
    entry = {"file_name": "a.jsonl", "columns": {"prompt": "input", "response": "output"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry}))
    train = chat_datasets(make_plan("a"), tokenizer).train
    assert train is not None
    assert tokenizer.decode(train[0]["input_ids"]) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    )
