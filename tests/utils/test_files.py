"""Files are whole or as they were, whatever fails and whoever reads meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ftcore.utils import files
from ftcore.utils.files import (
    as_json,
    flush_tree,
    leftovers,
    replace_folder,
    staged_file,
    staged_folder,
    staging_path,
    write_json,
    write_whole,
)
from ftcore.utils.ownership import is_staged

FULL = OSError(28, "No space left on device")


class Disk:
    """Fails at the n-th flush or rename, and notes all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 1000) -> None:
        self.limit, self.done = limit, list[str]()
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename")):
            monkeypatch.setattr(owner, name, self.counted(name, getattr(owner, name)))

    def counted(self, name: str, act: Any) -> Any:
        def counting(*arguments: Any) -> Any:
            if len(self.done) == self.limit:
                self.limit = -1  # once
                raise FULL
            self.done.append(name)
            return act(*arguments)

        return counting


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("content", "found"), [("ä\r\n", b"\xc3\xa4\r\n"), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_a_file_holds_what_was_written(tmp_path: Path, content: str | bytes, found: bytes) -> None:
    write_whole(tmp_path / "x", "longer before")
    write_whole(tmp_path / "x", content)
    assert (tmp_path / "x").read_bytes() == found
    assert names(tmp_path) == ["x"]


def test_a_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    write_whole(tmp_path / "x", "1")
    assert disk.done == ["fsync", "replace"]
    write_whole(tmp_path / "x", "2", durable=False)
    assert disk.done == ["fsync", "replace", "replace"]


@pytest.mark.parametrize("limit", [0, 1])
def test_an_error_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    (tmp_path / "x").write_text("before")
    Disk(monkeypatch, limit)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", "after")
    assert tree(tmp_path) == {"x": "before"}


def test_what_is_interrupted_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("before")

    def write() -> None:
        with staged_file(tmp_path / "x") as staged:
            staged.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    with pytest.raises(FileNotFoundError), staged_file(tmp_path / "y"):
        pass  # nothing was written
    assert tree(tmp_path) == {"x": "before"}


def test_writers_at_once_do_not_share_a_staged_file(tmp_path: Path) -> None:
    texts = [str(number) * 100_000 for number in range(8)]
    found, ends = set(), threading.Event()

    def read() -> None:
        while not ends.is_set():
            found.add((tmp_path / "x").read_text())

    write_whole(tmp_path / "x", texts[0])
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write_whole, args=(tmp_path / "x", text)) for text in texts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ends.set()
    reader.join()
    assert found <= set(texts)
    assert (tmp_path / "x").read_text() in texts
    assert names(tmp_path) == ["x"]


def test_a_later_run_knows_what_a_killed_one_left(tmp_path: Path) -> None:
    first, second = (staging_path(tmp_path / "ft_run.json") for _ in range(2))
    first.write_text("half")
    assert first != second
    assert first.parent == tmp_path
    assert is_staged(first)
    others = ("ft_run.json", ".tmp-1-2-ft_run.json.bak", ".tmp-x-2-ft_run.json", ".tmp-1-2-a-ft_run.json")
    for name in others:
        (tmp_path / name).write_text("another's")
    assert leftovers(tmp_path / "ft_run.json") == [first]
    assert leftovers(tmp_path / "[x]*") == []


def test_a_folder_takes_the_place_of_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("1", "2"):
        with staged_folder(tmp_path / "new" / "x") as staged:
            (staged / "below").mkdir()
            (staged / "below" / content).write_text(content)
    assert tree(tmp_path) == {"new/x/below/2": "2"}
    assert names(tmp_path / "new") == ["x"]
    disk = Disk(monkeypatch)
    with staged_folder(tmp_path / "new" / "x") as staged:
        (staged / "a").write_text("a")
    assert disk.done == ["fsync", "fsync", "rename", "rename", "fsync"]  # file, folder; earlier, new; their parent
    disk.done.clear()
    with staged_folder(tmp_path / "y", durable=False) as staged:
        (staged / "a").write_text("a")
    assert disk.done == ["rename"]


@pytest.mark.parametrize("limit", range(4))
def test_an_error_leaves_the_earlier_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """At the flush of the file, of the folder, at the rename of the earlier folder, of the new one."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("before")
    disk = Disk(monkeypatch, limit)
    with pytest.raises(OSError, match="No space left"), staged_folder(tmp_path / "x") as staged:
        (staged / "a").write_text("after")
    assert len(disk.done) == limit + (limit == 3)  # the earlier one is renamed back
    assert tree(tmp_path) == {"x/a": "before"}
    assert names(tmp_path) == ["x"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("file")
    (tmp_path / "staged").mkdir()
    with pytest.raises(NotADirectoryError):
        replace_folder(tmp_path / "staged", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "file"


def test_a_tree_is_flushed_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append(path.relative_to(tmp_path).as_posix()))
    (tmp_path / "b").mkdir()
    for name in ("b/1", "a"):
        (tmp_path / name).write_text(name)
    flush_tree(tmp_path)
    assert flushed == ["a", "b/1", "b", "."]


def test_json_is_readable_and_the_same_each_time(tmp_path: Path) -> None:
    value = {"ü": (1, 2), "set": {"b", "a"}, "path": Path("x"), "none": None}
    text = '{\n  "ü": [\n    1,\n    2\n  ],\n  "set": [\n    "a",\n    "b"\n  ],\n  "path": "x",\n  "none": null\n}\n'
    assert as_json(value) == text
    write_json(tmp_path / "x.json", value)
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == text
