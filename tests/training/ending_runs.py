"""Runs that end in every way, and runs whose output closes or fills up: ``python tests/training/ending_runs.py
FOLDER``.

Prints a line of JSON a run: exit status, what ``ft_run.json`` says of its end, whether what was trained is there, the
last line that a user could read, and what the next plan says of the folder.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_runs import ended, forked, options_of, write_inputs

import ftcore.runner.run
from ft_plugins.stages.sft.objective import NextToken
from ftcore.config.planner import make_plan
from ftcore.training.checkpointing import directory

Before = Callable[[], None]


def in_step(call: Callable[[], object], number: int = 3) -> Before:
    """Calls something before a micro-batch of this process."""

    def prepare() -> None:
        real, state = NextToken.loss_sum, {"calls": 0}

        def instead(self: NextToken, batch: Any) -> Any:
            state["calls"] += 1
            if state["calls"] == number:
                call()
            return real(self, batch)

        NextToken.loss_sum = instead  # type: ignore[method-assign]

    return prepare


def in_place_of(target: Any, name: str, call: Callable[[], object]) -> Before:
    """Calls something before a function."""

    def prepare() -> None:
        real = getattr(target, name)

        def instead(*arguments: Any, **options: Any) -> Any:
            call()
            return real(*arguments, **options)

        setattr(target, name, instead)

    return prepare


def send(*numbers: int) -> Callable[[], None]:
    """Sends signals to this process."""

    def call() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return call


def fail(error: BaseException) -> Callable[[], None]:
    """Raises."""

    def call() -> None:
        raise error

    return call


def ignoring_hang_ups() -> None:
    """As nohup does, and a hang-up in a step."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    in_step(send(signal.SIGHUP))()


def output_to(make: Callable[[], int]) -> Before:
    """Output and errors go to a descriptor."""

    def prepare() -> None:
        descriptor = make()
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.close(descriptor)

    return prepare


def closed_pipe() -> int:
    """What ``| head -1`` leaves."""
    read, write = os.pipe()
    os.close(read)
    return write


def gone_terminal() -> int:
    """Of an ssh connection that has dropped: every write ends in EIO."""
    master, slave = pty.openpty()
    os.close(master)
    return slave


def closed() -> None:
    """``>&- 2>&-``."""
    os.close(1)
    os.close(2)


def full_device() -> int:
    """A disk without room."""
    return os.open("/dev/full", os.O_WRONLY)


ENDS: dict[str, Before] = {
    "whole": lambda: None,
    "SIGTERM in a step": in_step(send(signal.SIGTERM)),
    "Ctrl-C in a step": in_step(send(signal.SIGINT)),
    "SIGHUP in a step": in_step(send(signal.SIGHUP)),
    "SIGHUP that nohup ignores": ignoring_hang_ups,
    "SIGTERM twice": in_step(send(signal.SIGTERM, signal.SIGTERM)),
    "SIGTERM while loading": in_place_of(ftcore.runner.run, "load_model", send(signal.SIGTERM)),
    "SIGHUP in the last evaluation": in_place_of(ftcore.runner.run, "last_evaluation", send(signal.SIGHUP)),
    "SIGKILL in a step": in_step(send(signal.SIGKILL)),
    "an exception": in_step(fail(ZeroDivisionError("boom\nmore"))),
    "no memory while loading": in_place_of(ftcore.runner.run, "load_model", fail(MemoryError())),
    "a full disk": in_place_of(directory, "commit", fail(OSError(28, "No space left on device"))),
    "a closed pipe": output_to(closed_pipe),
    "a terminal that is gone": output_to(gone_terminal),
    "closed descriptors": closed,
    "a full device": output_to(full_device),
}


def main() -> None:
    folder = Path(sys.argv[1])
    write_inputs(folder)
    for name, before in ENDS.items():
        output = folder / name.replace(" ", "-")
        changes = {"num_train_epochs": 1, "logging_steps": 1, "eval_strategy": "no", "do_eval": True}
        options = options_of("lora", folder, output) | changes
        found: dict[str, Any] = {"end": name, "exit": ended(forked(options, before))}
        file = output / "ft_run.json"
        manifest = json.loads(file.read_bytes()) if file.is_file() else {}
        found |= {key: manifest.get(key) for key in ("status", "phase", "cause")}
        found["trained"] = (output / "adapter_model.safetensors").is_file()
        found["whole"] = [path.name for path in directory.checkpoints(output) if directory.verify(path)]
        said = output.with_suffix(".txt").read_text().splitlines()
        log = output / "ft_run.log"
        found |= {"said": said[-1:], "log": log.read_text().splitlines() if log.is_file() else []}
        warnings = make_plan(None, values=options).warnings
        found["next"] = [line for line in warnings if str(output) in line]
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
