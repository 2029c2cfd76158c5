"""Progress of a run: ``trainer_log.jsonl``, a console line per log, and on a terminal a bar with the remaining time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ftcore.utils.files import write_whole
from ftcore.utils.units import as_clock

LOG = "trainer_log.jsonl"
_FIRST = ("loss", "grad_norm", "learning_rate", "eval_loss", "epoch", "throughput", "num_input_tokens_seen")
_CLOCK = ("_runtime", "_per_second")
"""Suffixes of metrics that are not logged: a log line has its own times."""


class ProgressCallback(TrainerCallback):
    """Writes each log line to the file and the console.

    Args:
        folder: of ``trainer_log.jsonl``.
        console: instead of standard output.
        bar: whether a terminal gets a progress bar.
    """

    def __init__(self, folder: Path, console: Console | None = None, *, bar: bool = True) -> None:
        self.file = folder / LOG
        self.console = console or Console()
        self.bar: Progress | None = None
        self.has_bar = bar and self.console.is_terminal
        self.began, self.first_step = time.time(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first_step = time.time(), state.global_step
        if not state.is_world_process_zero:
            return
        keep_lines(self.file, state.global_step)
        if self.has_bar:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
            self.bar.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        shown = {name: logs[name] for name in (*_FIRST, *logs) if name in logs and not name.endswith(_CLOCK)}
        line = {"current_steps": state.global_step, "total_steps": state.max_steps} | shown | self._times(state)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.info(_sentence(state, shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def info(self, line: str) -> None:
        """Prints a line for the user, above the bar if there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _times(self, state: Any) -> dict[str, Any]:
        elapsed = time.time() - self.began
        done = state.global_step - self.first_step
        left = elapsed / done * (state.max_steps - state.global_step) if done else 0.0
        percentage = 100 * state.global_step / state.max_steps if state.max_steps else 100.0
        return {
            "percentage": round(percentage, 2),
            "elapsed_time": as_clock(elapsed),
            "remaining_time": as_clock(left),
        }


def keep_lines(file: Path, step: int) -> None:
    """Removes log lines of steps after ``step``, which a resumed run repeats; 0 removes all."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        return
    kept = [line for line in _whole_lines(file) if step and json.loads(line)["current_steps"] <= step]
    write_whole(file, "".join(line + "\n" for line in kept))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of the log, in order; none for a run shorter than ``logging_steps``."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in _whole_lines(file)]


def _whole_lines(file: Path) -> list[str]:
    """Complete lines: a kill may leave an incomplete last line."""
    text = file.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _sentence(state: Any, shown: Mapping[str, Any]) -> str:
    parts = [f"step {state.global_step}/{state.max_steps}"]
    for name, value in shown.items():
        parts.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.6g}")
    return "  ".join(parts)
