"""Writes output lines window by window, to standard output or to a file that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ftcore.api.plan import Plan
from ftcore.errors import Problem, RunError, UsageError
from ftcore.inference.answers import failed_line
from ftcore.inference.fingerprint import facts
from ftcore.training.callbacks.signals import ended_at_once

Lines = Callable[[int, int], Sequence[tuple[str, str]]]
"""``lines(start, end)``: for each of these inputs its JSON line and its text for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputWriter:
    """Writes answers or scores.

    Args:
        what: ``answers`` or ``scores``.
        plan: the model's plan.
        inputs: one per line.
        window: number of lines computed at a time.
        load: loads the model; its argument is the number of lines already written.
    """

    what: str
    plan: Plan
    inputs: Sequence[Any]
    window: int
    load: Callable[[int], Lines]
    failed: list[Problem] = field(default_factory=list)
    """Errors of single lines. These lines are written too, and the command fails."""

    def to_terminal(self, as_json: bool) -> None:
        """Writes to standard output."""
        with ended_at_once(lambda: f"; --output FILE saves {self.what}, and can be resumed"):
            self._each_window(0, as_json=as_json, show=True, keep=lambda lines: None)
        self._check()

    def to_file(self, output: Path, as_json: bool) -> None:
        """Writes to a file, which appears when it is complete; lines of an earlier, killed process are reused."""
        from ftcore.inference.resumable_output import open_partial

        count, done, locking = len(self.inputs), 0, self.plan.training.use_file_locking
        with (
            ended_at_once(lambda: f" after {done:,} of {count:,} {self.what}; the same command resumes"),
            open_partial(output, facts(self.plan, self.inputs), count, self.window, locking=locking) as partial,
        ):
            done = partial.done

            def keep(lines: Sequence[str]) -> None:
                nonlocal done
                partial.write(lines)
                done = partial.done

            if done:
                click.echo(f"resuming after {done:,} of {count:,} {self.what}", err=True)
            self._each_window(done, as_json=as_json, show=as_json, keep=keep)
            partial.finish()
        click.echo(f"{count:,} {self.what} written to {output}", err=True)
        self._check()

    def _check(self) -> None:
        if self.failed:
            raise RunError(failed_line(self.failed, len(self.inputs)))

    def _each_window(self, done: int, *, as_json: bool, show: bool, keep: Callable[[Sequence[str]], None]) -> None:
        count = len(self.inputs)
        if done == count:
            return
        lines = self.load(done)
        for start in range(done, count, self.window):
            window = lines(start, min(start + self.window, count))
            keep([line for line, _ in window])
            for line, text in window if show else ():
                click.echo(line if as_json else text)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses an existing file, and a file in a folder that does not exist.

    Raises:
        UsageError: naming the file or folder.
    """
    if output.exists() and not overwrite:
        raise UsageError(Problem(f"{output} exists already", "--output", "write another name, or --overwrite"))
    if output.is_dir():
        raise UsageError(Problem(f"{output} is a folder", "--output", "write a file name"))
    if not output.parent.is_dir():
        raise UsageError(Problem(f"the folder {output.parent} does not exist", "--output"))
