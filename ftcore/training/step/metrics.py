"""Metrics and losses accumulated over micro-batches and logged as means."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ftcore.training.parallel.strategy import ParallelStrategy


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

    def means(self, strategy: ParallelStrategy) -> dict[str, float]:
        """Name -> mean over all processes, of metrics with a positive weight."""
        together = self
        if strategy.world_size > 1:
            together = MetricAccumulator()
            for sums in strategy.gather_object(self.sums):
                together.take(MetricAccumulator(sums))
        return {name: total / weight for name, (total, weight) in together.sums.items() if weight}

    def clear(self) -> None:
        """Resets all sums."""
        self.sums.clear()


class MetricLog:
    """The accumulators that a run's metrics go to.

    Attributes:
        training: metrics of training since the last log line.
    """

    def __init__(self) -> None:
        self.training = MetricAccumulator()
        self._current = self.training
        self._own = threading.local()

    def add(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds values ``[n]`` to a metric that is logged as a mean; ``weights`` are ``[n]``, or None."""
        own: MetricAccumulator | None = getattr(self._own, "accumulator", None)
        (self._current if own is None else own).add(name, values, weights)

    def take(self, other: MetricAccumulator) -> None:
        """Adds the sums of a job that ran `apart`."""
        self._current.take(other)

    @contextmanager
    def apart(self) -> Iterator[MetricAccumulator]:
        """Metrics of this thread go to an accumulator of their own, so that jobs are added in a fixed order."""
        self._own.accumulator = MetricAccumulator()
        try:
            yield self._own.accumulator
        finally:
            del self._own.accumulator

    @contextmanager
    def evaluation(self) -> Iterator[MetricAccumulator]:
        """Metrics go to an accumulator of the evaluation."""
        before, self._current = self._current, MetricAccumulator()
        try:
            yield self._current
        finally:
            self._current = before


class RunningLoss:
    """The loss since the last log line and since the start of the process.

    The sum stays on the device, as reading it would wait for the device at every step.

    Args:
        device: of the losses.
        step: optimizer steps done before.

    Attributes:
        sum: of the losses since the last log line, float32, a scalar.
        total: of all losses of this process that were logged.
        first_step: optimizer steps done when the process started.
        logged_step: optimizer steps done at the last log line.
    """

    def __init__(self, device: torch.device, step: int) -> None:
        self.sum = torch.zeros((), device=device)
        self.total = 0.0
        self.first_step = self.logged_step = step

    def drain(self, strategy: ParallelStrategy, step: int) -> float:
        """The mean loss per step since the last log line, over all processes; starts the next line."""
        loss = strategy.mean(self.sum)
        self.sum.zero_()
        self.total += loss
        mean = loss / (step - self.logged_step)
        self.logged_step = step
        return mean

    def mean(self, step: int) -> float:
        """The mean loss per step of this process's steps."""
        self.total += self.sum.item()
        return self.total / max(step - self.first_step, 0.001)
