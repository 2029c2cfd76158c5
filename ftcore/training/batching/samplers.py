"""Batch samplers whose order is a function of seed and epoch alone, so that a resume needs no replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ftcore.errors import listed


class EpochBatches:
    """Batches of row numbers for one process, in an order that seed and epoch decide.

    With several processes, ``size * processes`` consecutive rows are one global batch. An incomplete last one is
    divided evenly. A process without a row gets a filler (see `Rows`), so that all processes take the same number of
    steps.

    Args:
        rows: rows in the dataset.
        size: rows per batch and process.
        seed: of the order; None keeps the dataset's.
        process: this process's number.
        processes: how many there are.
        whole: whether to drop the rows of an incomplete global batch.
    """

    def __init__(
        self, rows: int, size: int, seed: int | None, process: int = 0, processes: int = 1, whole: bool = False
    ) -> None:
        self.rows, self.size, self.seed, self.process, self.processes = rows, size, seed, process, processes
        step = size * processes
        self.used = rows - rows % step if whole else rows
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Called by the trainer before each epoch; its batches before ``first`` are skipped."""
        self.epoch, self.first = epoch, first

    def order(self) -> list[int]:
        """All row numbers of this epoch in order."""
        if self.seed is None:
            return list(range(self.rows))
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.rows).tolist()

    def __len__(self) -> int:
        return -(-self.used // (self.size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self.lists(), self.first, None)

    def lists(self) -> Iterator[list[int]]:
        """The row numbers of each batch of this epoch."""
        order, step = self.order(), self.size * self.processes
        for start in range(0, self.used, step):
            together = order[start : start + step]
            mine = np.array_split(together, self.processes)[self.process].tolist()
            yield mine or [-1 - together[0]]


class Rows(Dataset):
    """A dataset in which row ``-1 - i`` is row i with weights of 0: a filler that changes no sum.

    Fillers are also marked by ``filler``, for stages in which a row itself has a weight.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index >= 0:
            return self.dataset[index]
        row = self.dataset[-1 - index]
        unweighted = {name: np.zeros_like(value) for name, value in row.items() if name.endswith("weights")}
        return {**row, **unweighted, "filler": True}


class EpochLoader(DataLoader):
    """A DataLoader that sets the sampler's epoch. It does not use the global random state, as a resume requires."""

    def __init__(self, dataset: Any, batches: EpochBatches, **options: Any) -> None:
        super().__init__(Rows(dataset), batch_sampler=batches, generator=torch.Generator().manual_seed(0), **options)

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Called by the trainer before each epoch; its batches before ``first`` are skipped."""
        self.batch_sampler.set_epoch(epoch, first)


def places(dataset: Any, indices: Sequence[int], limit: int = 8) -> str:
    """The places of rows, for a message: ``a.jsonl:3, a.jsonl:9 and 2 more``."""
    known = getattr(dataset, "places", None)
    names = [str(known[index]) if known is not None else f"row {index}" for index in indices]
    return listed(names, limit, length=200)  # the line stands behind the path
