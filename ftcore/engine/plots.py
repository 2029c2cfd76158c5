"""``training_loss.png`` and ``training_eval_loss.png``, drawn from ``trainer_log.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ftcore.engine.reports import LOG, read_log

CURVES = {"loss": "training_loss.png", "eval_loss": "training_eval_loss.png"}


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, weaker the fewer values there are (LLaMA-Factory, extras/ploting.py)."""
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def plot_losses(folder: Path) -> list[Path]:
    """Draws each curve of which the log has values.

    Args:
        folder: holds the log; the pictures go there too.

    Returns:
        The files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(folder / LOG)
    written = []
    for name, file in CURVES.items():
        points = [(line["current_steps"], line[name]) for line in lines if name in line]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(steps, values, color="#1f77b4", alpha=0.4, label="original")
        axes.plot(steps, smooth(values), color="#1f77b4", label="smoothed")
        axes.set(xlabel="step", ylabel=name, title=name)
        axes.legend()
        figure.savefig(folder / file, format="png", dpi=100)
        written.append(folder / file)
    return written
