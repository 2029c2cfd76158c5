"""Malformed datasets: each is answered with place, reason and fix, none with a traceback, and none in silence (R11).

What is written in ``malformed/*.jsonl`` is one case a line with the messages that it must give; ``…`` stands for words
of other packages. What is no plain file is made here.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.data.pipeline.loading import chat_datasets, feedback_datasets, pair_datasets
from ftcore.data.sources.resolve import resolve
from ftcore.errors import UsageError

CORPUS = Path(__file__).parent / "malformed"
FILES, ROWS = (list(map(json.loads, (CORPUS / f"{name}.jsonl").read_text().splitlines())) for name in ("files", "rows"))
LOADERS = {"Preference": pair_datasets, "Feedback": feedback_datasets}
GOOD = {"instruction": "q", "output": "r"}
LINE = json.dumps(GOOD)
# a FIFO without a writer is opened for ever
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def says(tmp_path: Path, tokenizer: Any, make_plan: Any) -> Callable[..., list[str]]:
    """``says("a.jsonl", kind="Chat")``: every problem of this dataset; the line that counts bad rows is left out."""

    def run(name: str, kind: str = "Chat", **options: Any) -> list[str]:
        _, problems = resolve([name], dataset_dir=tmp_path, where="run.yaml:3")
        if not problems:
            with pytest.raises(UsageError) as caught:
                LOADERS.get(kind, chat_datasets)(make_plan(name, samples=kind, cutoff_len=200, **options), tokenizer)
            problems = list(caught.value.problems)
            if " bad row" in problems[-1].message:
                assert problems[-1].hint == "correct the rows, or set on_bad_row: skip to leave them out"
                problems = problems[:-1]
        assert all(problem.where and problem.hint for problem in problems)
        return [str(problem).replace(f"{tmp_path}/", "").replace(str(tmp_path), "DIR") for problem in problems]

    return run


def same(found: list[str], expected: list[str]) -> bool:
    """Whether the messages are these, where ``…`` stands for anything."""

    def fits(message: str, pattern: str) -> bool:
        start, _, end = pattern.partition("…")
        return message.startswith(start) and message.endswith(end) and (bool(end) or message == start)

    return len(found) == len(expected) and all(map(fits, found, expected))


def content(case: dict[str, Any]) -> bytes:
    if "repeat" in case:
        return (case["repeat"][0] * case["repeat"][1]).encode()
    return case["latin-1"].encode("latin-1") if "latin-1" in case else case["text"].encode()


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["case"])
def test_files(tmp_path: Path, says: Any, case: dict[str, Any]) -> None:
    if case["file"].endswith((".parquet", ".arrow")):
        pytest.importorskip("pyarrow")
    (tmp_path / case["file"]).write_bytes(content(case))
    found = says(case["file"])
    assert same(found, case["says"]), found


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case["case"])
def test_rows(tmp_path: Path, says: Any, case: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, case["rows"])))
    (tmp_path / "there.jpg").write_bytes(b"")
    found = says("a.jsonl", case["kind"])
    assert same(found, case["says"]), found


def test_there_are_enough() -> None:
    names = [case["case"] for case in (*FILES, *ROWS)]
    assert len(set(names)) == len(names) > 60


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("size", [0.1, 0.5, 0.9])
def test_cut_columnar_files(tmp_path: Path, says: Any, name: str, size: float) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = pa.Table.from_pylist([GOOD] * 3)
    if name == "a.parquet":
        parquet.write_table(table, tmp_path / name)
    else:
        opener = ipc.new_file if name.startswith("file") else ipc.new_stream
        with opener(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * size)])
    kind = "Parquet" if name == "a.parquet" else "Arrow"
    found = says(name)
    assert same(found, [f"{name}: not {kind}, or damaged: …; is the file truncated? download it again"]), found


def test_ten_megabytes_in_one_broken_line(tmp_path: Path, says: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "' + "word " * 2_000_000)
    assert says("a.jsonl") == [
        'a.jsonl:1: not JSON: the line is incomplete at column 17: "{\\"instruction\\": \\"'
        + "word " * 7
        + "word...; is the file truncated? download or write it again"
    ]


NEITHER = "neither a file nor a folder; write the path of a file or of a folder of files"
LINK = "a broken symbolic link; point the link to an existing file"


def test_what_is_no_file(tmp_path: Path, says: Any) -> None:
    os.mkfifo(tmp_path / "fifo.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    info = {name: {"file_name": f"{name}.jsonl"} for name in ("fifo", "loop", "gone")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for name, what in (("fifo", NEITHER), ("loop", LINK), ("gone", LINK)):
        assert says(f"{name}.jsonl") == [f"run.yaml:3: dataset '{name}.jsonl': {name}.jsonl is {what}"]
        assert says(name) == [f"dataset_info.json:1: dataset '{name}': {name}.jsonl is {what}"]


def test_folders(tmp_path: Path, says: Any) -> None:
    for name in ("empty", "strange", "a.jsonl"):
        (tmp_path / name).mkdir()
    (tmp_path / "strange" / "train.json").write_text("[]")
    os.mkfifo(tmp_path / "strange" / "train-2.jsonl")
    ends = "data files end in .json, .jsonl, .csv, .tsv, .parquet, .arrow, .feather, .txt"
    assert says("empty") == [f"run.yaml:3: folder empty holds no data; {ends}"]
    assert says("a.jsonl") == [f"run.yaml:3: folder a.jsonl holds no data; {ends}"]
    assert says("strange") == [f"run.yaml:3: dataset 'strange': strange/train-2.jsonl is {NEITHER}"]
    assert says("nothing.jsonl") == [
        "run.yaml:3: no dataset 'nothing.jsonl'; there is no dataset_info.json; files there: none"
    ]


TOLERATED: dict[str, tuple[str, bytes, int]] = {
    "byte-order mark": ("a.jsonl", b"\xef\xbb\xbf" + LINE.encode(), 1),
    "CRLF": ("a.jsonl", f"{LINE}\r\n{LINE}\r\n".encode(), 2),
    "CRLF in CSV": ("a.csv", b"instruction,output\r\nq,r\r\n", 1),
    "blank lines": ("a.jsonl", f"\n\n{LINE}\n \n{LINE}\n\n".encode(), 2),
    "the same row twice": ("a.jsonl", "\n".join([json.dumps(GOOD | {"id": 1})] * 2).encode(), 2),
    "JSON lines in .json": ("a.json", f"{LINE}\n{LINE}".encode(), 2),
    "an array in .jsonl": ("a.jsonl", f"[{LINE},\n{LINE}]".encode(), 2),
    "rows over several lines": ("a.json", (json.dumps(GOOD, indent=1) * 2).encode(), 2),
    "U+2028 in a text": ("a.jsonl", '{"instruction": "a\u2028b\x85c", "output": "r"}'.encode(), 1),
    "further columns": ("a.jsonl", b'{"instruction": "q", "output": "r", "score": NaN, "x": [null]}', 1),
    "nulls": ("a.jsonl", b'{"instruction": "q", "input": null, "output": "r", "history": null, "tools": null}', 1),
    "empty texts": (
        "a.jsonl",
        b'{"instruction": "q", "input": "", "output": "r", "system": "", "history": "", "tools": "", "images": ""}',
        1,
    ),
    "10 MB in one line": ("a.jsonl", json.dumps(GOOD | {"notes": "word " * 2_000_000}).encode(), 1),
    "gzip": ("a.jsonl.gz", gzip.compress(LINE.encode()), 1),
    "two gzips end to end": ("a.jsonl.gz", gzip.compress(LINE.encode() + b"\n") * 2, 2),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_is_no_mistake(tmp_path: Path, tokenizer: Any, make_plan: Any, name: str) -> None:
    file, data, rows = TOLERATED[name]
    (tmp_path / file).write_bytes(data)
    (counts,) = chat_datasets(make_plan(file), tokenizer).accounting.train
    assert (counts.rows, counts.kept, counts.bad) == (rows, rows, [])
    assert counts.tokens == counts.used + counts.cut


def test_skip_names_every_bad_row(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """All rows of the corpus that are conversations, in one file with as many good ones."""
    cases = [
        case for case in ROWS if case["kind"] == "Chat" and len(case["rows"]) == 1 and "messages" in case["rows"][0]
    ]
    bad = [case for case in cases if case["says"][0].startswith("a.jsonl:1: ") and "dataset" not in case["says"][0]]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    lines = [json.dumps(row) for case in bad for row in ({"messages": turns}, *case["rows"])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "there.jpg").write_bytes(b"")
    (counts,) = chat_datasets(make_plan("a.jsonl", on_bad_row="skip"), tokenizer).accounting.train
    assert len(bad) > 15
    assert (counts.rows, counts.kept, len(counts.bad)) == (2 * len(bad), len(bad), len(bad))
    expected = [case["says"][0].replace("a.jsonl:1: ", f"a.jsonl:{2 * i + 2}: ") for i, case in enumerate(bad)]
    found = [str(problem).replace(f"{tmp_path}/", "").replace(str(tmp_path), "DIR") for problem in counts.bad]
    assert found == expected
    assert f"  dropped: {len(bad)} rows that cannot be read" in counts.lines()
