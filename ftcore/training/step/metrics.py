"""Metrics accumulated over batches and logged as means."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate.utils import gather_object


class MetricAccumulator:
    """Name -> sum of values times weights, and sum of weights, both in float64."""

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.sums = dict(sums or {})

    def add(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds values ``[n]`` with weights ``[n]``; None for weights of 1."""
        values = values.detach().double()
        weights = torch.ones_like(values) if weights is None else weights.double()
        total, weight = torch.stack([(values * weights).sum(), weights.sum()]).tolist()
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + weight)

    def take(self, other: MetricAccumulator) -> None:
        """Adds the sums of another accumulator."""
        for name, (total, weight) in other.sums.items():
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (before[0] + total, before[1] + weight)

    def means(self) -> dict[str, float]:
        """Name -> mean, of metrics with a positive weight."""
        return {name: total / weight for name, (total, weight) in self.sums.items() if weight}

    def clear(self) -> None:
        """Resets all sums."""
        self.sums.clear()


def merged(meters: MetricAccumulator, processes: int) -> MetricAccumulator:
    """The accumulators of all processes as one."""
    if processes == 1:
        return meters
    together = MetricAccumulator()
    for sums in gather_object([meters.sums]):
        together.take(MetricAccumulator(sums))
    return together
