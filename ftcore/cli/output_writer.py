"""Lines made a window at a time, to a file that a kill does not spoil, or to standard output."""

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
"""``lines(start, end)``: of each of these inputs the JSON line, and what people read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputWriter:
    """What is written.

    Args:
        what: ``answers`` or ``scores``.
        plan: of the model.
        inputs: one for each line.
        window: how many are made at a time.
        load: loads what makes the lines, of which so many are there already.
    """

    what: str
    plan: Plan
    inputs: Sequence[Any]
    window: int
    load: Callable[[int], Lines]
    failed: list[Problem] = field(default_factory=list)
    """What was raised for single lines, by what `load` gives; they are written too, and the command fails."""

    def to_terminal(self, as_json: bool) -> None:
        """On standard output."""
        with ended_at_once(lambda: f"; --output FILE keeps {self.what}, and goes on after a stop"):
            self._each_window(0, as_json=as_json, show=True, keep=lambda lines: None)
        self._check()

    def to_file(self, output: Path, as_json: bool) -> None:
        """Into a file, which is whole or not there; what was made before a kill is gone on with."""
        from ftcore.inference.resumable_output import open_partial

        count, done, locking = len(self.inputs), 0, self.plan.training.use_file_locking
        with (
            ended_at_once(lambda: f" after {done:,} of {count:,} {self.what}; the same command goes on"),
            open_partial(output, facts(self.plan, self.inputs), count, self.window, locking=locking) as partial,
        ):
            done = partial.done

            def keep(lines: Sequence[str]) -> None:
                nonlocal done
                partial.write(lines)
                done = partial.done

            if done:
                click.echo(f"going on after {done:,} of {count:,} {self.what}", err=True)
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
            made = lines(start, min(start + self.window, count))
            keep([line for line, _ in made])
            for line, text in made if show else ():
                click.echo(line if as_json else text)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses a file that is there, and a folder that is not.

    Raises:
        UsageError: naming it.
    """
    if output.exists() and not overwrite:
        raise UsageError(Problem(f"{output} exists", "--output", "write another name, or --overwrite"))
    if output.is_dir():
        raise UsageError(Problem(f"{output} is a folder", "--output", "write a file's name"))
    if not output.parent.is_dir():
        raise UsageError(Problem(f"there is no folder {output.parent}", "--output"))
