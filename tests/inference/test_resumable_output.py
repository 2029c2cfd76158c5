"""A file of answers that is gone on with: what is kept of it, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftcore.errors import RunError, UsageError
from ftcore.inference.resumable_output import open_partial, partial_of

FACTS = {"model": "a", "temperature": 0.5, "long": ["x" * 100]}
LINES = [json.dumps({"n": n, "text": "é"}, ensure_ascii=False) for n in range(5)]


def begun(output: Path, lines: list[str], rest: str = "", **changes: Any) -> Path:
    """What a kill leaves after these lines."""
    head = {"ft_partial": 1, **FACTS, "answers at a time": 2, "answers": 5, **changes}
    file = partial_of(output)
    file.write_text("".join(f"{line}\n" for line in [json.dumps(head), *lines]) + rest, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("lines", "rest", "kept"),
    [
        ([], "", 0),
        (LINES[:1], "", 0),
        (LINES[:2], LINES[2][:4], 2),
        (LINES[:3], "", 2),
        (LINES[:4], "", 4),
        (LINES[:4], LINES[4], 4),
        (LINES, "", 5),
    ],
)
def test_whole_windows_are_kept(tmp_path: Path, lines: list[str], rest: str, kept: int) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    file = begun(output, lines, rest)
    with open_partial(output, FACTS, 5, 2) as partial:
        assert partial.done == kept
        for start in range(kept, 5, 2):
            partial.write(LINES[start : start + 2])
        assert output.read_text() == "old"
        partial.finish()
    assert output.read_text(encoding="utf-8").splitlines() == LINES
    assert not file.exists()
    assert list(tmp_path.iterdir()) == [output]


def test_differences_are_named(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    file = begun(output, LINES[:2], model="b", gone=True)
    before = file.read_bytes()
    with pytest.raises(UsageError) as error, open_partial(output, FACTS | {"temperature": 0.7}, 5, 2):
        pass
    assert str(error.value).splitlines() == [
        f"{file} cannot be resumed; undo the change, or remove out.jsonl.partial to start again",
        'model was "b", is "a"',
        "temperature was 0.5, is 0.7",
        "gone was true, is null",
    ]
    assert file.read_bytes() == before


def test_a_window_of_another_size_is_a_difference(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    begun(output, LINES[:2])
    refused = pytest.raises(UsageError, match="answers at a time was 2, is 64\\nanswers was 5, is 3")
    with refused, open_partial(output, FACTS, 3, 64):
        pass


def test_nothing_is_lost_where_no_window_was_whole(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    file = begun(output, LINES[:1], model="b")
    with open_partial(output, FACTS, 5, 2) as partial:
        assert partial.done == 0
        partial.write(LINES[:2])
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0])["model"] == "a"
    file.unlink()
    with pytest.raises(ZeroDivisionError), open_partial(output, FACTS, 5, 2):
        raise ZeroDivisionError
    assert not file.exists()


@pytest.mark.parametrize("content", ["{}\n", "[]\n", "3\n", "my notes\n", "my notes", '{"ft_partial": 2}\n'])
def test_somebody_elses_file_stays(tmp_path: Path, content: str) -> None:
    file = partial_of(tmp_path / "out.jsonl")
    file.write_text(content)
    refused = pytest.raises(UsageError, match="was not written by this version of ft; move or remove it")
    with refused, open_partial(tmp_path / "out.jsonl", FACTS, 5, 2):
        pass
    assert file.read_text() == content


def test_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    code = "import fcntl, sys; stream = open(sys.argv[1], 'a'); fcntl.flock(stream, 2); print(flush=True); input()"
    words = [sys.executable, "-c", code, str(partial_of(output))]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused = pytest.raises(RunError, match=r"another process is writing .*out\.jsonl\.partial")
        with refused, open_partial(output, FACTS, 5, 2):
            pass
        other.communicate("\n")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    refused = pytest.raises(RunError, match=r"none/out\.jsonl\.partial cannot be written: No such file")
    with refused, open_partial(tmp_path / "none" / "out.jsonl", FACTS, 5, 2):
        pass


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.jsonl"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, open_partial(output, FACTS, 5, 2) as partial:
        partial.write(LINES[:2])
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError) as error:
            partial.write(LINES[2:4])
    reason = f"{partial_of(output)} cannot be written: No space left on device"
    assert str(error.value) == f"{reason}; remove the cause, then repeat the command to resume"
    with open_partial(output, FACTS, 5, 2) as partial:
        assert partial.done >= 2
    with pytest.raises(FileNotFoundError), open_partial(output, FACTS, 5, 2):
        raise FileNotFoundError  # of somebody else's
