"""Plots of losses, rewards and accuracies in ``trainer_log.jsonl``: ``training_loss.png`` and others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftcore.training.callbacks.progress import LOG, read_log

DRAWN = ("loss", "reward", "accurac")
"""Parts of the names of metrics that are plotted; learning rates, norms and times are not."""


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Metric -> its points (step, value), of the plotted metrics, in order of first appearance."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if any(word in name for word in DRAWN) and isinstance(value, int | float):
                found.setdefault(name, []).append((line["current_steps"], value))
    return found


def picture(name: str) -> str:
    """File name of a metric's plot: ``rewards/accuracies`` is ``training_rewards_accuracies.png``."""
    return f"training_{name.replace('/', '_')}.png"


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, weaker the fewer values there are (LLaMA-Factory, extras/ploting.py)."""
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def plot_losses(folder: Path) -> list[Path]:
    """Plots each metric that has values in the log.

    Args:
        folder: holds the log, and receives the plots.

    Returns:
        The files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for name, points in curves(read_log(folder / LOG)).items():
        steps, values = zip(*points, strict=True)
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(steps, values, color="#1f77b4", alpha=0.4, label="original")
        axes.plot(steps, smooth(values), color="#1f77b4", label="smoothed")
        axes.set(xlabel="step", ylabel=name, title=name)
        axes.legend()
        figure.savefig(folder / picture(name), format="png", dpi=100)
        written.append(folder / picture(name))
    return written
