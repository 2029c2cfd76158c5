"""Crashes at every boundary of a save: ``python tests/training/crash_points.py FOLDER``.

A real run stops before it saves its second checkpoint, keeping one (``save_total_limit: 1``). There it is forked again
and again: each fork does the save, and dies at the n-th thing that it does to the disk (opening to write, fsync, mkdir,
rename, delete), or when a file exceeds n bytes; or is told then that the disk is full. After each death what is on the
disk must hold a whole checkpoint, be cleared away, and be gone on from. Prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_runs import ended, forked, options_of, write_inputs

from ftcore.errors import RunError
from ftcore.training.checkpointing import directory
from ftcore.training.checkpointing.checkpointer import Checkpointer

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
SIZES = (0, 1, 100, 1000, 5000, 20_000, 40_000, 80_000)


class Crash:
    """Counts what is done to the disk from `arm` on, and kills the process before the n-th."""

    def __init__(self) -> None:
        self.count, self.limit = 0, -1
        sys.addaudithook(self.hook)
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            self.note()
            flush(descriptor)

        os.fsync = fsync

    def arm(self, limit: int) -> None:
        self.count, self.limit = 0, limit

    def note(self) -> None:
        if self.limit >= 0:
            if self.count == self.limit:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in EVENTS or writes:
            self.note()


def crash_everywhere(save: Callable[[], None], folder: Path, setting: Any) -> dict[str, Any]:
    """Lets forks die; what was found."""
    backup, crash = folder.with_name("backup"), Crash()
    shutil.copytree(folder, backup)
    found: dict[str, Any] = {
        "events": 0,
        "deaths": 0,
        "deaths_by_size": 0,
        "full": 0,
        "old": 0,
        "new": 0,
        "problems": [],
    }

    def attempt(prepare: Callable[[], None]) -> int:
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)
        if not (child := os.fork()):
            prepare()
            try:
                save()
            except RunError as error:
                os._exit(1 if "checkpoint-2 could not be written" in str(error) and "bytes" in str(error) else 2)
            os._exit(0)
        status = ended(child)
        chosen = directory.find_resumable(folder, setting)
        whole = [path for path in directory.checkpoints(folder) if _whole(path)]
        if chosen is None or chosen not in whole:
            found["problems"].append(f"{found['deaths']}: {chosen} of {sorted(path.name for path in folder.iterdir())}")
        else:
            found["new" if chosen.name == "checkpoint-2" else "old"] += 1
        directory.clean(folder)
        if left := list(folder.glob(".tmp-*")):
            found["problems"].append(f"{found['deaths']}: {left} is left")
        return status

    while attempt(lambda: crash.arm(found["events"])) == -signal.SIGKILL:
        found["events"] += 1
        found["deaths"] += 1
    for size in SIZES:
        found["deaths_by_size"] += attempt(lambda size=size: _limit(size, signal.SIG_DFL)) == -signal.SIGXFSZ
        found["full"] += attempt(lambda size=size: _limit(size, signal.SIG_IGN)) == 1
    return found


def _whole(folder: Path) -> bool:
    try:
        directory.verify(folder)
    except directory.DamagedError:
        return False
    return True


def _limit(size: int, handler: signal.Handlers) -> None:
    """Lets the process die in the midst of writing a file that gets longer, or meet an error."""
    signal.signal(signal.SIGXFSZ, handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main() -> None:
    folder = Path(sys.argv[1])
    write_inputs(folder)
    options = options_of("lora", folder, folder / "out") | {"save_total_limit": 1, "lora_rank": 16}
    real, report = Checkpointer.save, folder / "report.json"

    def instead(self: Checkpointer) -> None:
        if self.trainer.state.global_step == 2:
            found = crash_everywhere(lambda: real(self), self.plan.output_dir, self.setting)
            report.write_text(json.dumps(found))
            os._exit(0)
        real(self)

    Checkpointer.save = instead
    assert ended(forked(options)) == 0, (folder / "out.txt").read_text()
    Checkpointer.save = real
    assert ended(forked(options)) == 0, (folder / "out.txt").read_text()
    print(report.read_text())


if __name__ == "__main__":
    main()
