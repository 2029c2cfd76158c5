"""What a message quotes of a user's data is short, whatever stands there: every role of every format, every file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ft_plugins.formats import FORMATS
from ftcore.api.components import DatasetFormat
from ftcore.api.samples import Place
from ftcore.data.formats.detection import row_problem
from ftcore.data.formats.sample_kinds import NAMES, Reading
from ftcore.data.multimodal.media_files import MediaFolders
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.sources.readers import read_rows
from ftcore.data.sources.resolve import resolve
from ftcore.errors import Problem, RowError, UsageError, listed, quoted, short
from ftcore.inference.prompts import read_conversations, read_prompts

LONG = "iVBORw0KGgo=" * 300
"""As an image as base64 begins, and far longer than a message."""
LARGE = LONG * 300
"""1 MB."""
MOST = 1200


def test_the_helper() -> None:
    assert quoted("a'b") == repr("a'b")
    assert quoted({"a": 1}) == "{'a': 1}"
    assert (len(quoted(LONG)), quoted(LONG)[:4], quoted(LONG)[-5:]) == (63, "'iVB", "VB...") or len(quoted(LONG)) == 63
    assert quoted(b"x" * 99) == "b'" + "x" * 58 + "..."
    assert short("x" * 60) == "x" * 60
    assert short("x" * 61) == "x" * 60 + "..."
    assert listed("abc", 2) == "a, b and 1 more"
    assert listed(()) == "none"
    assert len(str(Problem(LONG, LONG, LONG))) < 6100


def shapes(long: str) -> Iterator[Any]:
    """Values of every kind with something long in them, wherever it may stand."""
    yield from (
        LARGE,
        [LARGE],
        {LARGE: LARGE},
        long,
        [long],
        {long: 1},
        {"bytes": long, "path": None},
        [[long, 1]],
        [[1, long]],
        [[long, long, long]],
    )
    yield '{"name": "f", "name": "' + long + '"}'
    for key in ("role", "from", "content", "value", "tool_calls", "weight", "train", "reasoning_content", long):
        for turn in ({"role": "user", "content": "q"}, {"from": "human", "value": "q"}):
            for other in (long, [long], [{"type": long}], {"name": long}, [{"name": "f", "arguments": long}]):
                yield [turn | {key: other}]
                yield turn | {"role": "assistant", "from": "gpt", key: other}
                yield json.dumps([turn | {key: other}])


def problems(format_: DatasetFormat, row: dict[str, Any]) -> Iterator[str]:
    for kind in NAMES:
        reading = Reading(format=format_, kind=kind, columns=format_.columns, tags=format_.tags)
        try:
            MediaFolders((Path("/nowhere"),)).resolved(reading.read(row))
        except RowError as error:
            yield str(row_problem(Place("a.jsonl", 1, 1), error))


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS, ids=lambda format_: format_.name)
def test_every_role_of_every_format(format_: DatasetFormat) -> None:
    turns = [{format_.tags.get("role_tag"): format_.tags.get("user_tag"), format_.tags.get("content_tag"): "<image>"}]
    texts = ("prompt", "query", "response", "chosen", "rejected", "system")
    plain = {
        column: "<image>" if role == "prompt" else "x" for role, column in format_.columns.items() if role in texts
    }
    plain |= {column: turns for role, column in format_.columns.items() if role == "messages"}
    found = 0
    for column in format_.columns.values():
        for value in shapes(LONG):
            for message in problems(format_, plain | {column: value}):
                assert len(message) < MOST, message[:2000]
                found += 1
    for message in problems(format_, {LONG + str(number): 1 for number in range(20)}):
        assert len(message) < MOST, message[:2000]
        found += 1
    assert found > 100


FILES = {
    "a.jsonl": ['"{}"', '["{}"]', '{{"{}": 1', '{{"{}": 1, "{}": 2}}', '{{"a": "{}', '{{"a": "x"}} {}', "{}"],
    "a.json": ['["{}"]', '[{{"{}": 1, "{}": 2}}]', '[{{"a": "{}', "[{}]", '{{"{}": 1}} {}'],
    "a.csv": ["{},{}\n1,2", "a,b\n1,2,{}", 'a,b\n1,"{}', 'a,b\n1,"{}"x'],
    "a.tsv": ["{}\t{}\n1\t2", "a\tb\n1\t2\t{}"],
    "a.parquet": ["{}"],
    "a.arrow": ["{}"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FILES.items() for text in texts])
def test_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text.format(LONG, LONG))
    try:
        found = [str(row_problem(place, row)) for place, row in read_rows(tmp_path / name) if isinstance(row, RowError)]
    except UsageError as error:
        found = list(map(str, error.problems))
    assert found
    assert max(map(len, found)) < MOST


@pytest.mark.parametrize(
    "entry", ["columns", "tags", "file_name", "formatting", "ranking", "num_samples", LONG], ids=lambda key: key[:12]
)
@pytest.mark.parametrize(
    "value", [LONG, [LONG], {LONG: LONG}, {"prompt": LONG, "query": LONG}], ids=["text", "list", "object", "roles"]
)
def test_dataset_info(tmp_path: Path, tokenizer: Any, make_plan: Any, entry: str, value: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"b": 1}')
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.jsonl", entry: value}}))
    _, found = resolve(["a"], dataset_dir=tmp_path, where="run.yaml:3")
    if not found:
        with pytest.raises(UsageError) as caught:
            chat_datasets(make_plan("a"), tokenizer)
        found = list(caught.value.problems)
    assert max(len(str(problem)) for problem in found) < MOST


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [LONG]},
        {"prompt": "q", "system": [LONG]},
        {"prompt": "q", "settings": {LONG: LONG}},
        {"prompt": "q", "settings": {"temperature": LONG}},
        {"messages": LONG},
        {"messages": [{"role": LONG, "content": LONG}]},
        {"messages": [{"role": "user", "content": {LONG: LONG}}]},
        {LONG: 1},
    ],
)
def test_rows_to_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for read in (lambda path: read_prompts(path, None), read_conversations):
        with pytest.raises(UsageError) as caught:
            read(tmp_path / "a.jsonl")
        assert max(len(str(problem)) for problem in caught.value.problems) < MOST
