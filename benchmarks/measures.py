"""Numbers out of the probe's lines, and the table made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process.

    Args:
        cpu: CPU seconds of each step after the first.
        wall: wall seconds of the same steps.
        peak: most bytes that were resident.
        start: CPU seconds from the process's start to its first step.
        loss: of the first step, as logged.
        norm: the gradients' norm at the first step.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    peak: int
    start: float
    loss: float
    norm: float


def read(file: Path) -> Measured:
    """What a process left behind.

    Raises:
        ValueError: when it took fewer than two steps.
    """
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    begun = [line for line in lines if line["event"] == "on_step_begin"]
    ended = [line for line in lines if line["event"] == "on_step_end"]
    first = next((line for line in lines if line["event"] == "on_log" and "loss" in line), None)
    if len(ended) < 2 or first is None:
        raise ValueError(f"{file}: {len(ended)} steps; a warm-up step and a measured one are needed")
    pairs = list(zip(begun, ended, strict=True))[1:]
    return Measured(
        cpu=tuple(end["cpu"] - begin["cpu"] for begin, end in pairs),
        wall=tuple(end["wall"] - begin["wall"] for begin, end in pairs),
        peak=max(line["peak"] for line in lines),
        start=begun[0]["cpu"],
        loss=first["loss"],
        norm=first["grad_norm"],
    )


def differences(ours: Measured, theirs: Measured) -> dict[str, float]:
    """Relative differences of loss and gradient norm at the first step."""
    return {name: abs(getattr(ours, name) / getattr(theirs, name) - 1) for name in ("loss", "norm")}


def ratios(ours: Sequence[Measured], theirs: Sequence[Measured], clock: str) -> list[float]:
    """The peer's seconds over ours, step by step, of runs that alternated; ``clock`` is ``cpu`` or ``wall``."""
    return [
        slow / fast
        for our, their in zip(ours, theirs, strict=True)
        for fast, slow in zip(getattr(our, clock), getattr(their, clock), strict=True)
    ]


def spread(values: Sequence[float]) -> str:
    """Median, least and greatest."""
    return f"{median(values):.2f}x ({min(values):.2f} to {max(values):.2f})"


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = ["| work | against | at least | CPU time | wall | peak memory | loss, norm differ by |", "|" + "---|" * 7]
    for result in results:
        found = [spread(result[clock]) for clock in ("cpu", "wall")]
        off = ", ".join(f"{value:.0e}" for value in result["differences"].values())
        names = [result["work"], result["against"], f"{result['target']}x"]
        lines.append("| " + " | ".join([*names, *found, f"{result['memory']:.2f}x", off]) + " |")
    return "\n".join(lines)
