"""Whether a run that says ``running`` does: by its process where that can be seen, else by its lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftcore.errors import Problem, RunError, UsageError
from ftcore.runner import run_record
from ftcore.runner.run_record import RunRecord, cause_of, recorded
from ftcore.training.callbacks.signals import InterruptedRunError
from ftcore.utils import run_status
from ftcore.utils.file_lock import locked
from ftcore.utils.run_status import ProcessId, lives, notice, read_status

GONE = replace(ProcessId.own(), start="1")
"""This process's number, given to another one before."""


@pytest.fixture
def left(tmp_path: Path) -> Callable[..., Path]:
    """``left(process, **more)``: a folder whose run says that it is training."""

    def make(process: ProcessId | None, **more: Any) -> Path:
        value = {"status": "running", "phase": "training", "started_at": "2026-01-02T03:04:05+00:00"}
        value |= {"process": process.as_dict()} if process else {}
        (tmp_path / "ft_run.json").write_text(json.dumps(value | more))
        return tmp_path

    return make


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    own = ProcessId.own()
    assert own.lives() is True
    assert GONE.lives() is False
    assert replace(own, boot="another start of this machine").lives() is False
    assert replace(own, boot="of another machine", host="elsewhere").lives() is None
    assert replace(own, namespace="pid:[1]").lives() is None  # another container's numbers
    assert replace(own, boot="").lives() is None  # a system without /proc
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = run_status._started(other.pid)
        child = replace(own, pid=other.pid, start=str(started))
        assert child.lives() is True
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert child.lives() is False  # ended, and not yet waited for
    assert child.lives() is False


def test_the_lock_decides_where_the_process_cannot_be_seen(left: Callable[..., Path]) -> None:
    container = replace(ProcessId.own(), namespace="pid:[1]")
    elsewhere = replace(ProcessId.own(), boot="other", host="elsewhere")
    old_version = None
    for process, free in {container: False, elsewhere: None, old_version: False}.items():
        folder = left(process)
        assert lives(folder, read_status(folder)) is None  # no lock: nobody knows
        with locked(folder):
            assert lives(folder, read_status(folder)) is True
        assert lives(folder, read_status(folder)) is free
        (folder / ".ft.lock").unlink()


def test_what_is_said(left: Callable[..., Path], tmp_path: Path) -> None:
    own = ProcessId.own()
    assert notice(left(own)) == ""  # this very run
    which = f"process {own.pid} on {own.host}"
    assert notice(left(GONE)) == (
        f"{left(GONE)}: the run started at 2026-01-02T03:04:05+00:00 ended without a record while training: {which} "
        "is gone; it was killed, for example for lack of memory, or the machine went down"
    )
    parent = replace(own, pid=os.getppid(), start=str(run_status._started(os.getppid())))
    alive = f"a run started at 2026-01-02T03:04:05+00:00 is training: process {parent.pid} on {own.host}"
    assert notice(left(parent)) == f"{tmp_path}: {alive}"
    elsewhere = replace(own, boot="other", host="elsewhere")
    assert notice(left(elsewhere)).endswith(
        f"is recorded as training; whether process {own.pid} on elsewhere is alive is unknown on this machine"
    )
    for status in ("finished", "stopped", "failed"):
        assert notice(left(GONE, status=status)) == ""
    for content in ("", "[]", "{", "{}"):
        (tmp_path / "ft_run.json").write_text(content)
        assert notice(tmp_path) == ""
    (tmp_path / "ft_run.json").write_text(json.dumps({"status": "running", "process": {"pid": 1}}))
    assert notice(tmp_path).endswith("whether its process is alive is unknown on this machine")


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (
            InterruptedRunError("stopped by SIGTERM at step 2; more", 15),
            "stopped",
            "stopped by SIGTERM at step 2; more",
        ),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (RunError("checkpoint-1 could not be written"), "failed", "checkpoint-1 could not be written"),
        (UsageError([Problem("one", "a.yaml:1"), Problem("two")]), "failed", "a.yaml:1: one"),
        (ZeroDivisionError("boom\nmore"), "failed", "ZeroDivisionError: boom"),
        (MemoryError(), "failed", "MemoryError"),
        (SystemExit(3), "failed", "SystemExit: 3"),
        (ValueError("x" * 999), "failed", f"ValueError: {'x' * 388}..."),
    ],
)
def test_every_way_to_end_is_recorded(error: BaseException, status: str, cause: str, tmp_path: Path) -> None:

    def run() -> None:
        with recorded(tmp_path, {"fact": 1}) as record:
            assert (read_status(tmp_path)["status"], read_status(tmp_path)["phase"]) == ("running", "loading")
            record.enter("training")
            with record.during("saving"):
                assert read_status(tmp_path)["phase"] == "saving"
            assert read_status(tmp_path)["phase"] == "training"
            with record.during("evaluating"):
                raise error

    with pytest.raises(type(error)):
        run()
    found = read_status(tmp_path)
    ended = {name: found[name] for name in ("status", "phase", "cause", "fact")}
    assert ended == {"status": status, "phase": "evaluating", "cause": cause, "fact": 1}
    assert found["process"] == ProcessId.own().as_dict()
    assert found["started_at"] <= found["ended_at"]
    assert cause_of(error) == cause


def test_an_earlier_runs_manifest_stays_until_training_and_after_a_refusal(tmp_path: Path) -> None:
    file = tmp_path / "ft_run.json"

    def refused(earlier: str) -> None:
        with recorded(tmp_path, {}) as record:
            assert (file.read_text() == earlier) == ("finished" in earlier)
            record.begin_changes()
            record.enter("training")
            assert read_status(tmp_path)["status"] == "running"
            raise UsageError("this run cannot go on")

    for status in ("finished", "failed"):
        earlier = json.dumps({"status": status})
        file.write_text(earlier)
        with pytest.raises(UsageError):
            refused(earlier)
        assert file.read_text() == earlier
    file.write_text(json.dumps({"status": "finished"}))
    with pytest.raises(MemoryError), recorded(tmp_path, {}):
        raise MemoryError
    assert read_status(tmp_path) == {"status": "finished"}


def test_a_full_disk_does_not_keep_the_end_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    sizes = []

    def run() -> None:
        with recorded(tmp_path, {"fact": "ü"}):
            sizes.append((tmp_path / "ft_run.json").stat().st_size)
            monkeypatch.setattr(run_record, "write_whole", full)
            raise RunError("y" * 300)

    with pytest.raises(RunError):
        run()
    assert (read_status(tmp_path)["status"], read_status(tmp_path)["cause"]) == ("failed", "y" * 300)
    assert (tmp_path / "ft_run.json").stat().st_size == sizes[0]
    record = RunRecord(tmp_path / "none", {})
    record.enter("training")
    assert "ft_run.json cannot be written: No space left on device" in caplog.text
