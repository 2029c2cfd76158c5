"""Keeps ``ft_run.json`` up to date during a run, and records how the run ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ftcore.errors import FtError, UsageError, short
from ftcore.runner import artifacts
from ftcore.training.callbacks.signals import InterruptedRunError, before_exit, ended_at_once, shown
from ftcore.utils.files import as_json, write_whole
from ftcore.utils.ownership import RUN_MANIFEST, WRITTEN, foreign_files, keep_aside, put_back_aside
from ftcore.utils.run_status import FAILED, FINISHED, RUNNING, STOPPED, ProcessId, read_status

log = logging.getLogger(__name__)

PHASES = ("loading", "training", "evaluating", "predicting", "saving")
_CAUSE = 400
"""Maximum characters of a recorded cause."""
_ROOM = 1024
"""Spaces at the end of the file during a run: room for the final status if the disk is full by then."""


class RunRecord:
    """The manifest of a run, updated during the run.

    The manifest of an earlier, finished run describes the weights in the folder, so it stays until training begins.

    Args:
        folder: the run's folder.
        facts: the result of `ftcore.runner.artifacts.manifest`.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self.earlier = artifacts.read_manifest(folder)
        self._aside: list[Path] = []
        self._written = read_status(folder).get("status") != FINISHED
        self.value: dict[str, Any] = {
            **facts,
            "status": RUNNING,
            "phase": PHASES[0],
            "cause": None,
            "process": ProcessId.own().as_dict(),
            "started_at": _now(),
            "ended_at": None,
            "foreign_files": foreign_files(folder),
        }

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Sets the phase inside the context, and restores the previous one afterwards."""
        assert phase in PHASES
        before = self.value["phase"]
        self.enter(phase)
        yield
        self.enter(before)  # not after an error, whose phase is recorded

    def enter(self, phase: str) -> None:
        """Sets the phase."""
        self._note(phase=phase)

    def begin_changes(self) -> None:
        """Marks the folder's files as this run's; from now on the manifest is written."""
        self._written = True
        for name in self.value["foreign_files"]:
            if any(fnmatch(name, pattern) for pattern in WRITTEN):
                keep_aside(self.folder / name)
                self._aside.append(self.folder / name)

    def finish(self, counts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Records that the run has finished.

        Raises:
            OSError: if the manifest cannot be written.
        """
        ended = {"status": FINISHED, "phase": None, "ended_at": _now()}
        self.value |= ended | {"counts": dict(counts), "metrics": dict(metrics)}
        artifacts.write_manifest(self.folder, self.value)

    def end(self, error: BaseException) -> None:
        """Records that the run ended with an error. A refused run restores the manifest of an earlier run."""
        if self.value["status"] != RUNNING:
            return
        if isinstance(error, UsageError):
            for file in self._aside:
                put_back_aside(file)
        if isinstance(error, UsageError) and self.earlier is not None:
            if self._written:
                artifacts.put_back(self.folder, self.earlier)
            return
        interrupted = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        self._note(status=STOPPED if interrupted else FAILED, cause=cause_of(error), ended_at=_now())

    def exit_at_once(self, number: int) -> None:
        """Records that a second signal ends the process immediately."""
        self._note(status=STOPPED, cause=f"a second {shown(number)}", ended_at=_now())

    def _note(self, **changes: Any) -> None:
        self.value |= changes
        if not self._written:
            return
        text = as_json(self.value)
        try:
            write_whole(self.folder / RUN_MANIFEST, text.rstrip("\n") + " " * _ROOM + "\n")
        except OSError as error:
            if not _written_in_place(self.folder / RUN_MANIFEST, text):
                log.warning("%s cannot be written: %s", self.folder / RUN_MANIFEST, error.strerror)


@contextmanager
def recorded(folder: Path, facts: Mapping[str, Any]) -> Iterator[RunRecord]:
    """A context with the record of a run; records how the context ends.

    Raises:
        InterruptedRunError: if a signal ends it that nothing inside handles.
    """
    record = RunRecord(folder, facts)
    try:
        with before_exit(record.exit_at_once), ended_at_once(lambda: f" while {record.value['phase']}"):
            record.enter(PHASES[0])
            yield record
    except BaseException as error:
        record.end(error)
        raise


def cause_of(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if isinstance(error, FtError) and lines[0] else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return short(text, _CAUSE)


def _written_in_place(file: Path, text: str) -> bool:
    """Overwrites a file without making it longer, which needs no space on the disk; returns whether it did."""
    content = text.encode()
    try:
        if not file.is_file() or (room := file.stat().st_size - len(content)) < 0:
            return False
        with file.open("r+b") as stream:
            stream.write(content.rstrip(b"\n") + b" " * room + b"\n")
    except OSError:
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
