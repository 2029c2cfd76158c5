"""Runs that are stopped by signals: ``python tests/training/signal_runs.py FOLDER [CASE ...]``.

Without cases: a run sends itself SIGTERM or SIGINT in a step, while it writes a checkpoint, or while it evaluates;
once, or twice in a row. Prints a line of JSON a stop: exit status, whether anything was done after the signals, the
checkpoints that are whole, and what differs in the end from a run that was let go on.

With cases: each of them is stopped after every single step. Prints a line of JSON a case: where it stopped, and what
differs in the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_runs import differences, ended, forked, options_of, write_inputs

from ft_plugins.stages.sft.objective import NextToken
from ftcore.training.checkpointing import directory
from ftcore.training.step.guard import StepGuard

STOPS = [(number, place, 1) for number in (signal.SIGTERM, signal.SIGINT) for place in ("step", "save", "evaluation")]
STOPS += [(signal.SIGHUP, "step", 1), (signal.SIGHUP, "evaluation", 1)]
STOPS += [(signal.SIGTERM, place, 2) for place in ("step", "save", "evaluation")]


def stopping(number: int, place: str, times: int, note: Path) -> Callable[[], None]:
    """What a fork does first: it arms a signal to itself at the third micro-batch, save, or batch of an evaluation."""
    target: Any = {"step": NextToken, "save": directory, "evaluation": NextToken}[place]
    name = {"step": "loss_sum", "save": "commit", "evaluation": "loss_sum"}[place]

    def prepare() -> None:
        real = getattr(target, name)
        state = {"calls": 0}

        def instead(*arguments: Any, **options: Any) -> Any:
            if place == "save" or arguments[0].context.model.training is (place == "step"):
                state["calls"] += 1
                if state["calls"] == 3:
                    for _ in range(times):
                        os.kill(os.getpid(), number)
                    note.touch()
            return real(*arguments, **options)

        setattr(target, name, instead)

    return prepare


def stop_once() -> None:
    """Arms a signal in the first step of this process."""
    real = StepGuard.micro_batch

    def instead(*arguments: Any) -> Any:
        StepGuard.micro_batch = real
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    StepGuard.micro_batch = instead


def stop_after_every_step(case: str, folder: Path) -> dict[str, Any]:
    """A run that does one step a process."""
    changes = {"save_strategy": "no", "per_device_train_batch_size": 3, "save_total_limit": 1}  # three steps an epoch
    whole, stopped = (options_of(case, folder, folder / f"{case}-{name}") | changes for name in ("whole", "stopped"))
    output, found = Path(stopped["output_dir"]), {"case": case, "stops": []}
    assert ended(forked(whole | {"save_strategy": "steps"})) == 0, (folder / f"{case}-whole.txt").read_text()
    while (status := ended(forked(stopped, stop_once))) == 143:
        found["stops"] += [path.name for path in directory.checkpoints(output)]
        for path in directory.checkpoints(output)[:-1]:
            directory.remove(path)
    found["status"] = status
    # the last stop was in the evaluation after the last step, which its checkpoint says
    but = ("trainer_state.json", "progress.json")
    return found | {"differences": differences(folder / f"{case}-whole", output, but)}


def main() -> None:
    folder = Path(sys.argv[1])
    write_inputs(folder)
    for case in sys.argv[2:]:
        print(json.dumps(stop_after_every_step(case, folder)), flush=True)
    if not sys.argv[2:]:
        stop_everywhere(folder)


def stop_everywhere(folder: Path) -> None:
    """Each of `STOPS`."""
    # five steps; the third micro-batch is in the second one, and the third batch of an evaluation before its checkpoint
    changes = {"num_train_epochs": 1, "eval_steps": 2, "per_device_eval_batch_size": 1, "save_total_limit": None}
    whole = options_of("lora", folder, folder / "whole") | changes
    assert ended(forked(whole)) == 0, (folder / "whole.txt").read_text()
    for number, place, times in STOPS:
        name = f"{signal.Signals(number).name}-{place}-{times}"
        options = options_of("lora", folder, folder / name) | changes
        note = folder / f"{name}.note"
        status = ended(forked(options, stopping(number, place, times, note)))
        found = {"stop": name, "status": status, "went_on": note.exists()}
        output = Path(options["output_dir"])
        found["whole"] = [path.name for path in directory.checkpoints(output) if directory.verify(path)]
        found["said"] = (folder / f"{name}.txt").read_text().splitlines()[-1]
        found["again"] = ended(forked(options))
        found["differences"] = differences(folder / "whole", output)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
