"""Whether the run that ``ft_run.json`` tells of still runs: its process is found again, or known to be gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftcore.utils.file_lock import is_held
from ftcore.utils.json_files import read_object
from ftcore.utils.ownership import RUN_MANIFEST

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
_GONE = ("Z", "X")
"""States of a process in /proc that has ended and was not waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process, told from any other: numbers are given out again, and several machines may see one folder.

    Args:
        host: its name.
        pid: its number.
        start: clock ticks from the start of the machine to its own; empty where there is no /proc.
        boot: of the machine's start; empty where there is no /proc.
        namespace: in which the number holds: each container has its own.
    """

    host: str
    pid: int
    start: str = ""
    boot: str = ""
    namespace: str = ""

    @classmethod
    def own(cls) -> ProcessId:
        """This process."""
        pid = os.getpid()
        started = _started(pid)
        return cls(host=socket.gethostname(), pid=pid, start=started or "", boot=_boot(), namespace=_namespace())

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def lives(self) -> bool | None:
        """Whether it runs; None where this process cannot tell."""
        if not self.boot or not (boot := _boot()):
            return None
        if self.boot == boot:
            return _started(self.pid) == self.start if self.namespace == _namespace() else None
        return False if self.host == socket.gethostname() else None  # the machine was started anew since


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process began; None where there is none of this number, or one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _GONE else fields[19]


def read_status(folder: Path) -> Mapping[str, Any]:
    """``ft_run.json`` of a folder; empty where there is none that can be read."""
    try:
        return read_object(folder / RUN_MANIFEST)
    except ValueError:
        return {}


def lives(folder: Path, manifest: Mapping[str, Any]) -> bool | None:
    """Whether the run of a manifest that says ``running`` does; None where nobody can tell from here."""
    process = _process(manifest)
    known = process.lives() if process else None
    if known is not None:
        return known
    if (held := is_held(folder)) is not False:
        return held
    # of a lock that is free this says something on the machine that the run was on alone
    return False if process is None or process.host == socket.gethostname() else None


def _process(manifest: Mapping[str, Any]) -> ProcessId | None:
    try:
        return ProcessId(**manifest["process"])
    except (KeyError, TypeError):  # of a version that did not note it
        return None


def notice(folder: Path) -> str:
    """A line on a run that says ``running``: where it writes, or that it has ended without a word; else empty."""
    manifest = read_status(folder)
    process = _process(manifest)
    if manifest.get("status") != RUNNING or process == ProcessId.own():
        return ""
    which = f"process {process.pid} on {process.host}" if process else "its process"
    began = f" that began at {manifest['started_at']}" if manifest.get("started_at") else ""
    phase = manifest.get("phase") or "running"
    alive = lives(folder, manifest)
    if alive:
        return f"{folder}: a run{began} is {phase}: {which}"
    if alive is None:
        return f"{folder}: the run{began} says that it is {phase}, and nobody can tell from here whether {which} lives"
    how = "it was killed, out of memory for one, or the machine went down"
    return f"{folder}: the run{began} ended without a word while {phase}: {which} is gone; {how}"
