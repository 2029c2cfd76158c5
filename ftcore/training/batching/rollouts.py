"""Batches of rows that an objective makes during training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftcore.training.batching.samplers import EpochBatches
from ftcore.training.objective import Objective, Rollouts


class RolloutBatches(EpochBatches):
    """Sets the length of the training loop: the same number of micro-batches for each rollout of an epoch.

    A last rollout with too few rows is filled up from the start of the epoch.

    Args:
        rows: rows of the dataset, such as prompts.
        size: rows per rollout, of all processes.
        seed: of the order; None keeps the dataset's.
        repeats: micro-batches per rollout.
    """

    def __init__(self, rows: int, size: int, seed: int | None, repeats: int) -> None:
        super().__init__(rows, size, seed)
        self.repeats = repeats

    @property
    def rollouts(self) -> int:
        """Per epoch."""
        return -(-self.rows // self.size)

    def numbers(self, rollout: int) -> list[int]:
        """Rows of a rollout, counted over all epochs."""
        epoch, place = divmod(rollout, self.rollouts)
        self.set_epoch(epoch)
        order = self.order()
        return [order[(place * self.size + row) % self.rows] for row in range(self.size)]

    def __len__(self) -> int:
        return self.rollouts * self.repeats

    def lists(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            yield [0]


class RolloutBuffer:
    """The rows of the current rollout, and the part of them that each step trains on.

    Args:
        objective: makes the rows.
        dataset: the rows that it makes them from.
        args: TrainingArguments.
        seed: of the order of the dataset's rows; None keeps the dataset's.

    Attributes:
        rows: of the current rollout.
    """

    def __init__(self, objective: Objective, dataset: Any, args: Any, seed: int | None) -> None:
        assert objective.rollouts is not None
        self.objective, self.dataset, self.args = objective, dataset, args
        self.spec: Rollouts = objective.rollouts
        self.rows: list[dict[str, Any]] = []
        per_process = self.spec.batches * args.gradient_accumulation_steps * args.per_device_train_batch_size
        self.size = per_process * args.world_size
        repeats = self.spec.steps * args.gradient_accumulation_steps
        self.batches = RolloutBatches(len(dataset), self.size, seed, repeats)

    def step(self, number: int) -> list[Sequence[Mapping[str, Any]]]:
        """This process's rows of each micro-batch of an optimizer step, counted from the run's start.

        The first step of a rollout makes its rows. Each epoch over a rollout has its own order.
        """
        rollout, place = divmod(number, self.spec.steps)
        if place == 0:
            self.rows = self.objective.make_rows(self.dataset, self.batches.numbers(rollout), rollout)
        turn, place = divmod(place, self.spec.batches)
        order = np.random.default_rng([self.args.seed, rollout, turn]).permutation(self.size)
        shape = (self.spec.batches, -1, self.args.world_size, self.args.per_device_train_batch_size)
        share = order.reshape(shape)[place, :, self.args.process_index]
        return [[self.rows[row] for row in some] for some in share]
