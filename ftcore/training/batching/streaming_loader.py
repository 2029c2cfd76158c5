"""Batches of a stream, numbered from the run's start: the trainer counts them as it counts those of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ftcore.data.pipeline.streaming import Cursor, Stream


class StreamBatches(Dataset):
    """Batch k is the k-th that many rows of the stream, without regard to where a pass over the data ends.

    They are read in order. A resume says at which cursor the batch begins that comes next; without it, those before
    are read again.

    Args:
        stream: the rows.
        count: batches that will be asked for.
        size: rows per batch and process.
        process: this process's number.
        processes: how many there are; each reads all rows and takes its share of every batch.

    Attributes:
        cursor: where the batch after the last one begins.
    """

    def __init__(self, stream: Stream, count: int, size: int, process: int = 0, processes: int = 1) -> None:
        self.stream, self.count, self.size, self.process, self.processes = stream, count, size, process, processes
        self.resume(0, Cursor())

    def resume(self, number: int, cursor: Cursor) -> None:
        """Says that batch ``number`` begins at this cursor."""
        self._known, self._next, self.cursor = (number, cursor), number, cursor
        self._items: Iterator[tuple[dict[str, Any], Cursor]] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sequence[Mapping[str, Any]]:
        """The rows of this process in a batch."""
        if not 0 <= number < self.count:
            raise IndexError(f"batch {number} of {self.count}")
        if number < self._next:
            known, cursor = self._known
            assert known <= number  # nobody goes back behind where a run went on
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
    """Loads in this process: where the stream is must be known at every step."""

    def __init__(self, batches: StreamBatches, collate: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(
            batches,
            batch_sampler=_Numbers(len(batches)),
            collate_fn=_First(collate),
            generator=torch.Generator().manual_seed(0),
            **options,
        )


class _Numbers(Sampler):
    """One batch's number at a time."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in range(self._count))


class _First:
    """Collates the one batch that was asked for."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, batches: Sequence[Any]) -> Any:
        (rows,) = batches
        return self._collate(rows)
