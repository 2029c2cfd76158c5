"""Batches by number of tokens (``tokens_per_batch``)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ftcore.training.batching.samplers import EpochBatches

Ints = npt.NDArray[np.int64]


class TokenBatches(EpochBatches):
    """Batches with a limit on tokens, in an order of rows that seed and epoch decide.

    Batches are filled greedily in the order of the epoch. A row above the limit is a batch by itself. ``processes``
    consecutive batches are one global batch, so n processes train like one process with n times the accumulation. All
    epochs have as many batches as the one that needs most, so that steps, schedule and resume are known in advance: in
    the others the batches with most tokens are split.

    Args:
        lengths: tokens of each row, ``[R]``.
        tokens: most tokens of a batch.
        epochs: most epochs that the run begins.
        seed, process, processes: see `EpochBatches`.
    """

    def __init__(
        self, lengths: Ints, tokens: int, epochs: int, seed: int | None, process: int = 0, processes: int = 1
    ) -> None:
        super().__init__(len(lengths), 1, seed, process, processes)
        self.lengths, self.tokens = np.asarray(lengths, dtype=np.int64), tokens
        needed = 0
        for self.epoch in range(epochs if seed is not None else 1):
            needed = max(needed, len(self._fitting(self._ordered())))
        self.epoch = 0
        self.count = -(-needed // processes)

    def __len__(self) -> int:
        return self.count

    def lists(self) -> Iterator[list[int]]:
        """See `EpochBatches`."""
        order = self.order()
        parts = [order[start:end] for start, end in self._spans()]
        for number in range(self.count):
            together = parts[number * self.processes : (number + 1) * self.processes]
            if self.process < len(together):
                yield together[self.process]
            else:
                yield [-1 - (together or parts[:1])[0][0]]  # a filler, see `ftcore.training.batching.samplers.Rows`

    def _ordered(self) -> Ints:
        return self.lengths[np.asarray(self.order(), dtype=np.int64)]

    def _spans(self) -> list[tuple[int, int]]:
        """Start and end of each batch in this epoch's order, with the same number of batches in every epoch."""
        lengths = self._ordered()
        before = np.concatenate([[0], np.cumsum(lengths)])
        starts = [*self._fitting(lengths), len(lengths)]
        spans = list(pairwise(starts))
        heap = [(-int(before[end] - before[start]), start, end) for start, end in spans if end - start > 1]
        heapq.heapify(heap)
        for _ in range(self.count * self.processes - len(spans)):
            if not heap:
                break
            _, start, end = heapq.heappop(heap)
            half = int(np.searchsorted(before, (before[start] + before[end]) / 2))
            half = min(max(half, start + 1), end - 1)
            spans.remove((start, end))
            for part in ((start, half), (half, end)):
                spans.append(part)
                if part[1] - part[0] > 1:
                    heapq.heappush(heap, (-int(before[part[1]] - before[part[0]]), *part))
        return sorted(spans)

    def _fitting(self, lengths: Ints) -> list[int]:
        """The start of each batch, filled greedily."""
        before = np.concatenate([[0], np.cumsum(lengths)])
        starts, start = [], 0
        while start < len(lengths):
            starts.append(start)
            start = max(start + 1, int(np.searchsorted(before, before[start] + self.tokens, side="right")) - 1)
        return starts


def row_tokens(dataset: Any) -> Ints:
    """Tokens of each row's sequences, ``[R]``."""
    for name in ("row_tokens", "lengths"):
        if (known := getattr(dataset, name, None)) is not None:
            return np.asarray(known, dtype=np.int64)
    return np.array([len(dataset[index]["input_ids"]) for index in range(len(dataset))], dtype=np.int64)


def token_batches(dataset: Any, tokens: int, arguments: Any, seed: int | None) -> TokenBatches:
    """The batches of a run with these TrainingArguments."""
    lengths = row_tokens(dataset)
    epochs = math.ceil(arguments.num_train_epochs)
    if arguments.max_steps > 0:  # an epoch has at least as many batches as this
        least = max(int(lengths.sum()) // (tokens * arguments.world_size), 1)
        epochs = -(-arguments.max_steps * arguments.gradient_accumulation_steps // least) + 1
    return TokenBatches(lengths, tokens, epochs, seed, arguments.process_index, arguments.world_size)
