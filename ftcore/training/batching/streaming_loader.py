"""Batches of a stream, numbered from the run's start, so that the trainer counts them like those of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ftcore.data.pipeline.streaming import Cursor, Stream


class StreamBatches(Dataset):
    """Batch k holds the k-th group of rows of the stream; a batch may span the end of an epoch.

    Batches are read in order. A resume sets the cursor at which the next batch begins; without it, earlier batches are
    read again.

    Args:
        stream: the rows.
        count: number of batches of the run.
        size: rows per batch and process.
        process: this process's number.
        processes: number of processes; each reads all rows and uses its share of every batch.

    Attributes:
        cursor: where the next batch begins.
    """

    def __init__(self, stream: Stream, count: int, size: int, process: int = 0, processes: int = 1) -> None:
        self.stream, self.count, self.size, self.process, self.processes = stream, count, size, process, processes
        self.resume(0, Cursor())

    def resume(self, number: int, cursor: Cursor) -> None:
        """Sets the cursor at which batch ``number`` begins."""
        self._known, self._next, self.cursor = (number, cursor), number, cursor
        self._items: Iterator[tuple[dict[str, Any], Cursor]] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sequence[Mapping[str, Any]]:
        """This process's rows of a batch."""
        if not 0 <= number < self.count:
            raise IndexError(f"batch {number} of {self.count}")
        if number < self._next:
            known, cursor = self._known
            assert known <= number  # batches before a resume are never requested
            self.resume(known, cursor)
        while self._next < number:
            self._batch()
        return self._batch()

    def _batch(self) -> Sequence[Mapping[str, Any]]:
        if self._items is None:
            self._items = self.stream.items(self.cursor)
        together = list(islice(self._items, self.size * self.processes))
        self._next, self.cursor = self._next + 1, together[-1][1]
        mine = np.array_split(np.arange(len(together)), self.processes)[self.process].tolist()
        return [together[one][0] for one in mine]


class StreamLoader(DataLoader):
    """Loads in this process, because the stream's cursor must be known after every step."""

    def __init__(self, batches: StreamBatches, collate: Callable[[Any], Any], **options: Any) -> None:
        self.batches = batches
        super().__init__(
            batches,
            batch_sampler=_Numbers(len(batches)),
            collate_fn=_First(collate),
            generator=torch.Generator().manual_seed(0),
            **options,
        )

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Called by the trainer before the run, which is one epoch; batches before ``first`` are skipped."""
        self.batch_sampler.first = first


class _Numbers(Sampler):
    """Yields one batch number at a time."""

    def __init__(self, count: int) -> None:
        self._count, self.first = count, 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in range(self.first, self._count))


class _First:
    """Collates the single requested batch."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, batches: Sequence[Any]) -> Any:
        (rows,) = batches
        return self._collate(rows)
