"""Rows with their places, and files that are damaged in every way."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.data.formats.detection import row_problem
from ftcore.data.sources import readers
from ftcore.data.sources.json_rows import json_lines, json_values
from ftcore.data.sources.readers import read_rows
from ftcore.data.sources.text_window import TextWindow
from ftcore.errors import RowError, UsageError

ROWS = [{"a": "x\ny", "b": "é"}, {"a": "z", "b": "你"}]


def rows(path: Path) -> list[tuple[str, Any]]:
    """``(place, row)``; a bad row as its message."""
    found = []
    for place, row in read_rows(path):
        shown = str(row_problem(place, row)) if isinstance(row, RowError) else row
        found.append((str(place).replace(str(path), path.name), shown))
    return [(place, row.replace(str(path), path.name) if isinstance(row, str) else row) for place, row in found]


def error(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        list(read_rows(path))
    return str(caught.value).replace(str(path.parent) + "/", "")


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.json", json.dumps(ROWS), [1, 0]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 6]),
        ("a.json", "\ufeff" + json.dumps(ROWS), [1, 0]),
        ("a.json", "\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("a.json", "\n\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 6]),
        ("a.jsonl", "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n", [1, 3]),
        ("a.jsonl", json.dumps(ROWS, indent=1), [2, 6]),
        ("a.csv", 'a,b\r\n"x\ny",é\r\nz,你\r\n', [2, 4]),
        ("a.tsv", 'a\tb\n"x\ny"\té\n\nz\t你\n', [2, 5]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_rows_and_their_lines(tmp_path: Path, name: str, content: str, lines: list[int], zipped: bool) -> None:
    name = name + ".gz" * zipped
    path = write(tmp_path, name, gzip.compress(content.encode()) if zipped else content)
    places = [f"{name}:{line}" if line else f"{name} row 2" for line in lines]
    assert rows(path) == list(zip(places, ROWS, strict=True))


def test_text_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one\r\n\n two\n")
    assert rows(path) == [("a.txt:1", {"text": "one"}), ("a.txt:3", {"text": " two"})]


def test_columnar_files(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    for name, opener in (("file.arrow", ipc.new_file), ("stream.arrow", ipc.new_stream)):
        with opener(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert rows(tmp_path / name) == [(f"{name} row 1", ROWS[0]), (f"{name} row 2", ROWS[1])]
        cut = write(tmp_path, "cut-" + name, (tmp_path / name).read_bytes()[:-200])
        assert error(cut).startswith(f"cut-{name}: not ")
        assert error(cut).endswith("; is the file truncated? download it again")


def test_columnar_files_need_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error(write(tmp_path, "a.parquet", "PAR1")) == (
        "a.parquet: reading this file requires the package pyarrow; pip install pyarrow"
    )


def test_hub_datasets_need_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftcore.data.sources.readers import read_dataset

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError) as caught:
        list(read_dataset(DatasetSpec(name="o/n", path=None, hub_id="o/n", where="x.yaml:3")))
    assert str(caught.value) == (
        "x.yaml:3: downloading dataset 'o/n' requires the package datasets; "
        "pip install datasets, or download the dataset and write its file name"
    )


COMMA = r"add the missing comma, or write \" for a quote inside a string"
CUT = "; is the file truncated? download or write it again"
DAMAGED = [
    ("a.json", "", "a.json: the file is empty"),
    ("a.jsonl", " \n\n", "a.jsonl: the file is empty"),
    ("a.json", '[{"a": 1},\n {"a": "tex', "a.json:2: the file ends inside row 2" + CUT),
    ("a.json", '[{"a": 1},\n {"a": 2}', "a.json:2: the file ends inside row 2" + CUT),
    ("a.json", '[{"a": 1},\n', "a.json:2: the file ends inside row 2" + CUT),
    ("a.json", "[", "a.json:1: the file ends inside row 1" + CUT),
    ("a.json", '{"a": 1', "a.json:1: the file ends inside row 1" + CUT),
    ("a.json", '[{"a": 1}\n {"a": 2}]', "a.json:2:2: not JSON in row 1: expecting ',' or ']'; " + COMMA),
    (
        "a.json",
        '[{"a": 1}] x',
        "a.json:1:12: text after the array's closing ]; write all rows inside one array",
    ),
    (
        "a.json",
        '[{"a": "x\ny"}]',
        "a.json:1:10: not JSON in row 1: invalid control character; "
        r"write \n for a line break and \t for a tab inside a string",
    ),
    (
        "a.json",
        "[{'a': 1}]",
        "a.json:1:3: not JSON in row 1: expecting property name enclosed in double quotes; "
        'write names in double quotes, and no comma before the closing "}"',
    ),
    (
        "a.json",
        b'[{"a": 1},\0\0\0]',
        "a.json:1:11: not JSON in row 2: a NUL byte; the file is damaged or not text; download it again",
    ),
    ("a.json", "[" * 200_000, "a.json:1: nested too deeply"),
    ("a.json", '[{"a": ' + "1" * 5000 + "}]", "a.json:1: not JSON: Exceeds the limit"),
    (
        "a.json",
        b'[{"a": 1},\n{"a": "\xc4\xe3"}]',
        "a.json:2:8: not UTF-8: byte 0xc4; save it as UTF-8, for instance: iconv -f gb18030 -t utf-8 a.json",
    ),
    (
        "a.txt",
        "\ufeffx".encode("utf-16"),
        "a.txt:1:1: the file is UTF-16; save it as UTF-8, for instance: iconv -f utf-16 -t utf-8 a.txt",
    ),
    ("a.txt", "a\nb\0", "a.txt:2:2: a NUL byte; the file is damaged or not text; download it again"),
    ("a.csv", "a,b\n1\0,2\n", "a.csv:2:2: a NUL byte; the file is damaged or not text; download it again"),
    (
        "a.csv",
        'a,b\n1,"2\n3,4\n',
        'a.csv:3: not CSV: unexpected end of data; close each quote; write a quote inside a cell as ""',
    ),
    (
        "a.csv",
        "a,a\n1,2\n",
        "a.csv:1: column 'a' appears twice in the first line; write each column name once; the first line has: a, a",
    ),
    (
        "a.csv",
        "a,\n1,2\n",
        "a.csv:1: a column has no name in the first line; write each column name once; the first line has: a, ",
    ),
    ("a.json.gz", gzip.compress(b"[{}]", mtime=0)[:-6], "a.json.gz: damaged gzip: Compressed file ended"),
    ("a.json.gz", "[{}]", "a.json.gz: damaged gzip: Not a gzipped file"),
    ("a.parquet", "[]", "a.parquet: not Parquet, or damaged: "),
    ("a.arrow", "ARROW1", "a.arrow: not Arrow, or damaged: "),
    (
        "a.doc",
        "x",
        "a.doc: unknown file format; known: .json, .jsonl, .csv, .tsv, .parquet, .arrow, .feather, .txt",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED)
def test_damaged_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    found = error(write(tmp_path, name, content))
    assert found.startswith(message)
    assert "\n" not in found


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    assert error(tmp_path / "a.json") == "a.json: cannot be read: Is a directory"
    assert error(tmp_path / "b.json") == "b.json: cannot be read: No such file or directory"


def test_bad_rows_do_not_hide_the_good_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n[1]\n{"a": \n{"a": 1,}\n"x"\n{"a": 2}\n')
    found = rows(path)
    assert found[0] == ("a.jsonl:1", {"a": 1})
    assert found[1] == ("a.jsonl:2", "a.jsonl:2: the row is a list: [1]; write the row as an object: {column: value}")
    assert found[2][1].startswith("a.jsonl:3: not JSON: the line is incomplete at column 7")
    assert found[3][1].startswith("a.jsonl:4: not JSON: ")
    assert found[4] == ("a.jsonl:5", 'a.jsonl:5: the row is a string: "x"; write the row as an object: {column: value}')
    assert found[5] == ("a.jsonl:6", {"a": 2})
    path = write(tmp_path, "a.csv", "a,b\n1\n1,2\n1,2,3\n")
    assert [row if isinstance(row, dict) else row.split(";")[0] for _, row in rows(path)] == [
        'a.csv:2: the row has 1 cells, and the first line names 2 columns: "1"',
        {"a": "1", "b": "2"},
        'a.csv:4: the row has 3 cells, and the first line names 2 columns: "3"',
    ]
    path = write(tmp_path, "a.json", '[{"a": 1}, null, 3]')
    assert [row if isinstance(row, dict) else row.split(";")[0] for _, row in rows(path)] == [
        {"a": 1},
        "a.json row 2: the row is null",
        "a.json row 3: the row is a number: 3",
    ]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
tables = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5)


sizes = st.sampled_from([1, 2, 7, 30, 1 << 20])


@given(tables, st.sampled_from([None, 0, 2]), st.booleans(), sizes)
def test_json_is_read_back_with_true_lines(table: list[Any], indent: int | None, ascii_only: bool, size: int) -> None:
    """Whatever the size of the pieces in which it is read."""
    text = json.dumps(table, indent=indent, ensure_ascii=ascii_only)
    found = list(json_values("f", TextWindow(io.StringIO(text), size)))
    assert [row for _, row in found] == table
    assert [place.row for place, _ in found] == list(range(1, len(table) + 1))
    for place, row in found:
        assert bool(place.line) == (indent is not None or place.row == 1)
        if indent is not None:  # a row begins its line
            rest = "\n".join(text.split("\n")[place.line - 1 :])
            assert json.JSONDecoder().raw_decode(rest.lstrip(" ").removeprefix("["))[0] == row
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in table)
    if table:
        found = list(json_lines("f", TextWindow(io.StringIO(lines), size)))
        assert [(place.line, row) for place, row in found] == list(enumerate(table, 1))
        assert [row for _, row in json_values("f", TextWindow(io.StringIO(lines), size))] == table


@given(tables, st.data())
def test_cut_or_changed_json_never_gives_a_traceback(table: list[Any], data: st.DataObject) -> None:
    """And the same message, whatever the size of the pieces."""
    text = json.dumps(table, indent=1)
    position = data.draw(st.integers(0, len(text)))
    insert = data.draw(st.sampled_from(["", "\0", '"', "]", "{", ",", "\n", "x"]))
    broken = text[:position] + insert + (text[position:] if insert else "")
    for read in (json_values, json_lines):
        outcomes = []
        for size in (1, 7, 1 << 20):
            message, found = "", []
            try:
                for place, row in read("f", TextWindow(io.StringIO(broken), size)):
                    found.append((place, str(row) if isinstance(row, RowError) else row))
            except UsageError as caught:
                message = str(caught)
            outcomes.append((message, found))
        assert not message or message.startswith("f:")
        assert all(isinstance(row, dict | str) for _, row in found)
        assert outcomes[0] == outcomes[1] == outcomes[2]


@given(
    before=st.text(max_size=12),
    bad=st.sampled_from([b"\xff", b"\xc3(", b"\xe4\xbd(", b"\x80"]),
    block=st.integers(1, 5),
)
def test_the_place_of_a_bad_byte(tmp_path_factory: Any, before: str, bad: bytes, block: int) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    start = before.encode().replace(b"\0", b"x")
    path.write_bytes(b"x" + start + bad + b"\nmore\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BLOCK", block)
        found = error(path)
    head = b"x" + start
    line, column = head.count(b"\n") + 1, len(head) - head.rfind(b"\n")
    assert found.startswith(f"a.txt:{line}:{column}: not UTF-8: byte 0x{bad[0]:02x}; ")


def test_a_character_that_is_cut_off(tmp_path: Path) -> None:
    assert error(write(tmp_path, "a.txt", b"a\nbc\xe4\xbd")) == (
        "a.txt:2:3: not UTF-8: the file ends inside a character; is the file truncated? download it again"
    )


ONCE, TWICE = '{"a": {"b": 1}}', '{"a": {"b": 1, "c": "}",  "b": 2}}'


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", [ONCE, TWICE, ONCE], ["a.jsonl:2: 'b' occurs twice in one object, at column 27"]),
        (
            "a.json",
            [ONCE, TWICE, TWICE],
            [f"a.json:{n}: 'b' occurs twice in one object, at column 27" for n in (2, 3)],
        ),
        (
            "a.json",
            ["[" + ONCE + ",", " " + TWICE + ", " + ONCE + "]"],
            ["a.json:2: 'b' occurs twice in one object, at line 2, column 28"],
        ),
        (
            "a.json",
            ["{", '"a": 0', "}", '{"a": {"b": 1,', '"b": 2}', "}", ONCE],
            ["a.json:4: 'b' occurs twice in one object, at line 5, column 1"],
        ),
    ],
)
def test_a_key_twice(tmp_path: Path, name: str, text: list[str], places: list[str]) -> None:
    """The rows around it are read."""
    found = [row for _, row in rows(write(tmp_path, name, "\n".join(text)))]
    wrong = [row for row in found if isinstance(row, str)]
    assert [row.partition(': "')[0] for row in wrong] == places
    assert len(found) - len(wrong) == 3 - len(places)


@given(st.integers(1, 40))
def test_a_key_twice_wherever_a_piece_ends(size: int) -> None:
    text = f"[{TWICE},\n{ONCE}, {TWICE}]"
    found = list(json_values("a.json", TextWindow(io.StringIO(text), size)))
    assert [str(place) for place, _ in found] == ["a.json:1", "a.json:2", "a.json row 3"]
    assert [row.reason if isinstance(row, RowError) else row for _, row in found] == [
        "'b' occurs twice in one object, at line 1, column 28",
        {"a": {"b": 1}},
        "'b' occurs twice in one object, at line 2, column 44",
    ]


@pytest.mark.parametrize("column", ["tools", "tool_calls", "conversations"])
def test_a_key_twice_in_a_text_of_a_row(column: str) -> None:
    from ft_plugins.formats import FORMATS

    tool = '{"name": "f", "arguments": {"a": 1, "a": 2}}'
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": tool}]
    format_ = FORMATS[2]
    row = {"conversations": turns if column == "conversations" else [*turns[:1], {"from": "gpt", "value": "r"}]}
    row |= {"tools": f"[{tool}]"} if column == "tools" else {}
    if column == "tool_calls":
        row["conversations"] = [
            turns[0],
            {"from": "gpt", "value": "", "tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]},
        ]
    with pytest.raises(RowError) as caught:
        format_.read(
            row,
            {key: name for key, name in format_.columns.items() if key in ("messages", "tools")}
            | dict.fromkeys(("system", "images", "videos", "audios"), ""),
            format_.tags,
        )
    places = {"tools": ("tools", 38), "tool_calls": ("conversations[1].tool_calls[0].arguments", 10)}
    field, at = places.get(column, ("conversations[1].value", 37))
    assert caught.value.reason == f"{field}: 'a' occurs twice in one object, at column {at}"
    assert caught.value.field == field
