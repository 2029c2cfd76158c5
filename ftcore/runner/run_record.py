"""``ft_run.json`` while a run goes on, and how it ended."""

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
"""Characters of a cause that are kept."""
_ROOM = 1024
"""Blanks behind the text of a run that goes on: how it ends finds room there on a disk that is full by then."""


class RunRecord:
    """The manifest of a run, kept true while it goes on.

    A manifest of an earlier run that has finished tells of the weights that lie there, and stays until training begins.

    Args:
        folder: the run's.
        facts: of the manifest, as `ftcore.runner.artifacts.manifest` gives them.
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
        """What the run does meanwhile; afterwards it does again what it did before."""
        assert phase in PHASES
        before = self.value["phase"]
        self.enter(phase)
        yield
        self.enter(before)  # after an error the phase is where it happened

    def enter(self, phase: str) -> None:
        """What the run does from now on."""
        self._note(phase=phase)

    def begin_changes(self) -> None:
        """From here on the folder's files are this run's, and the manifest tells of no other."""
        self._written = True
        for name in self.value["foreign_files"]:
            if any(fnmatch(name, pattern) for pattern in WRITTEN):
                keep_aside(self.folder / name)
                self._aside.append(self.folder / name)

    def finish(self, counts: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """The run has ended well.

        Raises:
            OSError: when this cannot be written.
        """
        ended = {"status": FINISHED, "phase": None, "ended_at": _now()}
        self.value |= ended | {"counts": dict(counts), "metrics": dict(metrics)}
        artifacts.write_manifest(self.folder, self.value)

    def end(self, error: BaseException) -> None:
        """The run has ended by an error; one that it was refused by leaves an earlier run's manifest as it was."""
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
        """A second signal ends the process here and now."""
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
    """A record of what is done while it is entered, and how that ends.

    Raises:
        InterruptedRunError: when a signal ends it, where nothing inside takes signals for itself.
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
    """Writes over a file without making it longer, which takes no room on the disk; false where that cannot be."""
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
