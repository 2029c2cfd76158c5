"""A row of more bytes than it may have is a bad row with its place; those around it are read, in little memory."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.option_groups import DataOptions
from ftcore.data.formats.detection import row_problem
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.data.sources.json_rows import json_lines, json_values
from ftcore.data.sources.readers import read_dataset, read_rows
from ftcore.data.sources.row_size import MAX_ROW_BYTES, byte_count, size_of
from ftcore.data.sources.text_window import TextWindow
from ftcore.errors import RowError, UsageError
from ftcore.models import hub_access

SMALL = {"a": "x", "b": "y"}
LARGE = {"a": 'é"\\{[]}\n' * 100, "b": "z"}
TEXT, LONG = json.dumps(SMALL), json.dumps(LARGE, ensure_ascii=False)
BYTES = len(LONG.encode())
CELL = "é,\n" * 400


def said(path: Path, most: int) -> list[Any]:
    """``(place, row)``; of a bad row its message."""
    found: list[Any] = []
    for place, row in read_rows(path, most):
        shown = row_problem(place, row).message if isinstance(row, RowError) else row
        found.append((str(place).replace(f"{path}", path.name), shown))
    return found


def refused(size: int, most: int = 500) -> str:
    return f"the row has {size:,} bytes; max_row_bytes is {most:,}"


CASES: dict[str, tuple[str, str, int, list[str], Any]] = {
    "lines": ("a.jsonl", f"{TEXT}\n{LONG}\n\n{TEXT}", BYTES, ["a.jsonl:1", "a.jsonl:2", "a.jsonl:4"], SMALL),
    "last line": ("a.jsonl", f"{TEXT}\n{TEXT}\n{LONG}", BYTES, ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"], SMALL),
    "array": ("a.json", f"[{TEXT},\n{LONG},\n\n{TEXT}]", BYTES, ["a.json:1", "a.json:2", "a.json:4"], SMALL),
    "one line": ("a.json", f"[{TEXT}, {LONG}, {TEXT}]", BYTES, ["a.json:1", "a.json row 2", "a.json row 3"], SMALL),
    "objects": ("a.json", f"{LONG}\n\n{TEXT}\n{TEXT}", BYTES, ["a.json:1", "a.json:3", "a.json:4"], SMALL),
    "csv": ("a.csv", f'a,b\nx,y\n"{CELL}",z\nx,y\n', 1605, ["a.csv:2", "a.csv:3", "a.csv:404"], SMALL),
    "csv quotes": (
        "a.csv",
        f'a,b\nx,y\n{"é" * 300}""""{"é" * 300},z\nx,y',
        1207,
        ["a.csv:2", "a.csv:3", "a.csv:4"],
        SMALL,
    ),
    "tsv": ("a.tsv", f"a\tb\r\nx\ty\r\n{'é' * 300}\tz\r\nx\ty\r\n", 604, ["a.tsv:2", "a.tsv:3", "a.tsv:4"], SMALL),
    "text": ("a.txt", f"x\n{'é' * 300}\n \nx", 600, ["a.txt:1", "a.txt:2", "a.txt:4"], {"text": "x"}),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_text_files(tmp_path: Path, case: str, zipped: bool) -> None:
    name, text, size, places, row = CASES[case]
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    found = said(path, 500)
    assert [place.replace(".gz", "") for place, _ in found] == places
    shown = [
        (row if row == refused(size) else row.partition(": ")[0]) if isinstance(row, str) else row for _, row in found
    ]
    assert sorted(map(str, shown)) == sorted(map(str, [row, row, refused(size)]))
    assert not any(isinstance(row, str) for _, row in said(path, size))
    assert [isinstance(row, str) for _, row in said(path, size - 1)].count(True) == 1


def test_columnar_files_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    rows = [{"a": "x", "b": [{"c": "y"}]}, {"a": "é" * 300, "b": [{"c": "z" * 99}]}, {"a": "x", "b": None}]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet")
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert said(tmp_path / name, 500) == [
            (f"{name} row 1", rows[0]),
            (f"{name} row 2", refused(702) + ': ""'),
            (f"{name} row 3", rows[2]),
        ]
        assert [row for _, row in said(tmp_path / name, 702)] == rows
    made = SimpleNamespace(load_dataset=lambda *_, **__: Rows(rows))
    monkeypatch.setitem(sys.modules, "datasets", made)
    monkeypatch.setattr(hub_access.HubName, "problem", lambda self, where="": None)
    found = [row for _, row in read_dataset(DatasetSpec(name="o/n", path=None, hub_id="o/n"), max_row_bytes=500)]
    assert [isinstance(row, RowError) for row in found] == [False, True, False]


class Rows(list[Any]):
    features = None


def test_a_quote_that_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\nx,"y\n' + "x,y\n" * 200)
    ((place, row),) = read_rows(tmp_path / "a.csv", 500)
    assert (str(place), row.reason) == (f"{tmp_path}/a.csv:2", refused(805))
    assert row.cure.startswith("close the open quote, split the row, or write max_row_bytes: 805 ")
    (tmp_path / "b.csv").write_text("a," + "b" * 600 + "\nx,y")
    with pytest.raises(UsageError, match=r"b.csv:1: the first line must name the columns: the row has 6\d\d bytes"):
        list(read_rows(tmp_path / "b.csv", 500))


def test_a_file_that_ends_in_a_large_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"[{TEXT},\n" + LONG[:-2])
    with pytest.raises(UsageError) as caught:
        list(read_rows(tmp_path / "a.json", 500))
    assert str(caught.value) == (
        f"{tmp_path}/a.json:2: the file ends inside row 2; is the file truncated? download or write it again"
    )


PIECES = st.sampled_from(["a", "é", "\\", '"', "{", "}", "[", "]", "\n", "\\\\", "😀", ","])


@given(
    st.lists(st.lists(PIECES, max_size=30).map("".join), min_size=1, max_size=5), st.integers(1, 60), st.integers(1, 90)
)
def test_wherever_a_piece_ends(texts: list[str], size: int, most: int) -> None:
    """Each row is read, or refused with its bytes, as its length alone decides."""
    written = [json.dumps({"t": text, "u": [{}]}, ensure_ascii=False) for text in texts]
    expected = [json.loads(row) if len(row.encode()) <= most else refused(len(row.encode()), most) for row in written]
    lines = [str(number) for number in range(1, len(texts) + 1)]
    for read, text in (
        (json_values, "[" + ",\n".join(written) + "]"),
        (json_values, "\n".join(written)),
        (json_lines, "\n".join(written)),
    ):
        found = list(read("f", TextWindow(io.StringIO(text), size), most))
        assert [row.reason if isinstance(row, RowError) else row for _, row in found] == expected
        assert [str(place).removeprefix("f:") for place, _ in found] == lines


@pytest.mark.slow
@pytest.mark.parametrize("text", ['{{"a": "{}"}}', '[{{"a": [{}]}}]', 'a\n"{}"'])
def test_memory(tmp_path: Path, text: str) -> None:
    """20 MB are passed over in some MB."""
    inner = "1, " * 6_600_000 + "1" if "[{}]" in text else "word " * 4_000_000
    path = tmp_path / ("a.csv" if text.startswith("a") else "a.json")
    path.write_text(text.format(inner))
    tracemalloc.start()
    ((_, row),) = read_rows(path, 1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(row, RowError)
    assert row.reason.startswith("the row has ")
    assert peak < 8 << 20


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_run(tmp_path: Path, tokenizer: Any, make_plan: Any, policy: str) -> None:
    rows = [{"instruction": "q", "output": "r"}, {"instruction": "q", "output": "long " * 200}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = make_plan("a.jsonl", on_bad_row=policy, max_row_bytes=1000)
    if policy == "skip":
        (counts,) = chat_datasets(plan, tokenizer).accounting.train
        assert (counts.kept, len(counts.bad)) == (1, 1)
        return
    with pytest.raises(UsageError) as caught:
        chat_datasets(plan, tokenizer)
    assert str(caught.value).startswith(
        f'{tmp_path}/a.jsonl:2: the row has 1,034 bytes; max_row_bytes is 1,000: "{{\\"instruction\\": \\"q\\", '
    )
    assert (
        "; split the row, or write max_row_bytes: 1034 "
        "(tokenising takes up to 150 bytes of memory per byte)\n1 bad row; " in str(caught.value)
    )
    assert chat_datasets(make_plan("a.jsonl", max_row_bytes=1034), tokenizer).accounting.train[0].kept == 2


def test_sizes() -> None:
    assert DataOptions().max_row_bytes == MAX_ROW_BYTES
    assert [byte_count(text) for text in ("", "ab", "é", "😀", "\ud800")] == [0, 2, 2, 4, 3]
    assert size_of({"a": ["é", None, 1, b"xyz", {"b": ()}]}) == 1 + 2 + 8 + 8 + 3 + 1
