"""Whether the run of an ``ft_run.json`` is still running, by its process or its lock."""

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
"""States in /proc of a process that has ended: zombie and dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """Identifies a process, although process ids are reused and several machines may share a folder.

    Args:
        host: host name.
        pid: process id.
        start: start time in clock ticks after the machine's boot; empty without /proc.
        boot: the machine's boot id; empty without /proc.
        namespace: the namespace of the process id; each container has its own.
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
        """The fields for the manifest."""
        return asdict(self)

    def lives(self) -> bool | None:
        """Whether the process is running; None if unknown."""
        if not self.boot or not (boot := _boot()):
            return None
        if self.boot == boot:
            return _started(self.pid) == self.start if self.namespace == _namespace() else None
        return False if self.host == socket.gethostname() else None  # the machine has rebooted since


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
    """Start time of a process; None if it does not exist or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _GONE else fields[19]


def read_status(folder: Path) -> Mapping[str, Any]:
    """The content of a folder's ``ft_run.json``; empty if it cannot be read."""
    try:
        return read_object(folder / RUN_MANIFEST)
    except ValueError:
        return {}


def lives(folder: Path, manifest: Mapping[str, Any]) -> bool | None:
    """Whether the run of a manifest with the status ``running`` is still running; None if unknown."""
    process = _process(manifest)
    known = process.lives() if process else None
    if known is not None:
        return known
    if (held := is_held(folder)) is not False:
        return held
    # a free lock proves the end of the run only on the run's own machine
    return False if process is None or process.host == socket.gethostname() else None


def _process(manifest: Mapping[str, Any]) -> ProcessId | None:
    try:
        return ProcessId(**manifest["process"])
    except (KeyError, TypeError):  # written by a version that did not record it
        return None


def notice(folder: Path) -> str:
    """A line about a run with the status ``running``: it runs, was killed, or its state is unknown; else empty."""
    manifest = read_status(folder)
    process = _process(manifest)
    if manifest.get("status") != RUNNING or process == ProcessId.own():
        return ""
    which = f"process {process.pid} on {process.host}" if process else "its process"
    began = f" started at {manifest['started_at']}" if manifest.get("started_at") else ""
    phase = manifest.get("phase") or "running"
    alive = lives(folder, manifest)
    if alive:
        return f"{folder}: a run{began} is {phase}: {which}"
    if alive is None:
        return f"{folder}: the run{began} is recorded as {phase}; whether {which} is alive is unknown on this machine"
    cause = "it was killed, for example for lack of memory, or the machine went down"
    return f"{folder}: the run{began} ended without a record while {phase}: {which} is gone; {cause}"
