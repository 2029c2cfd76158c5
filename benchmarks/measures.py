"""Numbers out of the probe's lines, and the table made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

TOLERANCE = 1e-4
CLOCKS = ("cpu", "wall")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process.

    Args:
        cpu: CPU seconds at the end of each step, counted from when the trainer existed.
        wall: wall seconds of the same.
        before_cpu, before_wall: seconds from when the trainer existed to the first step's begin.
        peak: most bytes that were resident.
        start: CPU seconds from the process's start to its first step, those of its child processes among them.
        begun: wall time of the first step's begin.
        losses: of each step, as logged.
        norms: the gradients' norm of each step.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    before_cpu: float
    before_wall: float
    peak: int
    start: float
    begun: float
    losses: tuple[float, ...]
    norms: tuple[float, ...]

    def each_step(self, clock: str) -> list[float]:
        """Seconds from the end of one step to the end of the next; the first step is left out."""
        ends = getattr(self, clock)
        return [after - before for before, after in pairwise(ends)]

    def epochs(self, count: int, batches: int, clock: str) -> float:
        """Seconds from when the trainer existed to the end of so many epochs of so many batches.

        Each epoch that was not measured takes what the steps of the last measured one took.
        """
        ends: tuple[float, ...] = getattr(self, clock)
        measured = min(count, len(ends) // batches)
        end = ends[measured * batches - 1]
        begin = ends[(measured - 1) * batches - 1] if measured > 1 else getattr(self, f"before_{clock}")
        return end + (count - measured) * (end - begin)


def read(file: Path) -> Measured:
    """What a process left behind.

    Raises:
        ValueError: it took no step.
    """
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    made, begun, ended = (
        [line for line in lines if line["event"] == event] for event in ("on_init_end", "on_step_begin", "on_step_end")
    )
    logs = [line for line in lines if line["event"] == "on_log" and "loss" in line]
    if not ended or not logs:
        raise ValueError(f"{file}: no step was taken")
    return Measured(
        cpu=tuple(line["cpu"] - made[0]["cpu"] for line in ended),
        wall=tuple(line["wall"] - made[0]["wall"] for line in ended),
        before_cpu=begun[0]["cpu"] - made[0]["cpu"],
        before_wall=begun[0]["wall"] - made[0]["wall"],
        peak=max(line["peak"] for line in lines),
        start=begun[0]["cpu"] + begun[0]["children"],
        begun=begun[0]["wall"],
        losses=tuple(line["loss"] for line in logs),
        norms=tuple(line["grad_norm"] for line in logs),
    )


def differences(ours: Measured, theirs: Measured, scale: float = 1.0) -> dict[str, float]:
    """Differences of loss and gradient norm at the first step, relative to the peer's times ``scale``."""
    return {name: _off(getattr(ours, name)[0], scale * getattr(theirs, name)[0]) for name in ("losses", "norms")}


def _off(value: float, other: float) -> float:
    return abs(value - other) / abs(other) if other else float(value != other)


def ratios(
    ours: Sequence[Measured], theirs: Sequence[Measured], clock: str, epochs: int | None = None, batches: int = 1
) -> list[float]:
    """The peer's seconds over ours, of runs that alternated: of each step after the first, or of so many epochs."""

    def seconds(one: Measured) -> list[float]:
        return one.each_step(clock) if epochs is None else [one.epochs(epochs, batches, clock)]

    return [
        slow / fast
        for our, their in zip(ours, theirs, strict=True)
        for fast, slow in zip(seconds(our), seconds(their), strict=True)
    ]


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{median(values):.2f}x ({min(values):.2f} to {max(values):.2f})"


HEADER = ("work", "against", "measured", "at least", "CPU time", "wall", "memory (at most)", "loss, norm differ by")


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown; a row without numbers has its reason."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    return "\n".join(lines + [_line(result) for result in results])


def _line(result: Mapping[str, Any]) -> str:
    at_least = f"{result['target']:.2f}x" if result.get("target") else ""
    cells = [result["work"], result["against"], result.get("span", ""), at_least]
    if "error" in result:
        return "| " + " | ".join([*cells, f"not measured: {result['error']}", "", "", ""]) + " |"
    cells += [spread(result[clock]) for clock in CLOCKS]
    cells.append(f"{result['memory']:.2f}x ({result['memory_target']:.2f}x)" if result.get("memory") else "")
    cells.append(", ".join(f"{value:.0e}" for value in result.get("differences", {}).values()))
    return "| " + " | ".join(cells) + " |"
