"""Packs several sequences of together at most ``cutoff_len`` tokens into one item.

The rows of a pack are concatenated. Each has its own positions and attends only to itself. Packed and unpacked epochs
train the same tokens with the same weights; only the assignment of rows to steps differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Place, Text
from ftcore.data.datasets.token_dataset import TokenDataset
from ftcore.data.storage.arrays import Ints
from ftcore.utils.hashing import combined, new_digest

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def packs(plan: Plan) -> bool:
    """Whether the plan packs rows: ``packing`` or ``neat_packing``, else the default of the stage."""
    if plan.data.packing is not None:
        return plan.data.packing
    return plan.data.neat_packing or bool(plan.stage.component.packs_by_default)


def splits(plan: Plan) -> bool:
    """Whether documents are split between packs; only then ``cutoff_len`` does not truncate them."""
    return packs(plan) and plan.stage.component.samples == (Text.__name__,) and plan.data.packing_split is not False


def uncut(plan: Plan) -> DataOptions:
    """The data options of the plan, without ``cutoff_len`` if documents are split between packs."""
    return plan.data.model_copy(update={"cutoff_len": sys.maxsize}) if splits(plan) else plan.data


class Segments(NamedTuple):
    """The pieces of rows in each pack.

    Args:
        rows: ``[S]``, the row of each piece.
        starts, ends: ``[S]``, the tokens of each piece.
        packs: ``[P + 1]``: pack i has the pieces ``packs[i]`` to ``packs[i + 1]``.
    """

    rows: Ints
    starts: Ints
    ends: Ints
    packs: Ints


def fill(lengths: npt.NDArray[Any], size: int) -> Segments:
    """Packs whole rows with best-fit decreasing.

    Args:
        lengths: tokens of each row, at most ``size``.
        size: tokens of a pack.
    """
    assert not len(lengths) or lengths.max() <= size
    of_row = np.empty(len(lengths), dtype=np.int64)
    free: list[list[int]] = [[] for _ in range(size + 1)]  # free tokens -> packs
    there, count = 0, 0  # bit n: some pack has n free tokens
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        fitting = there >> length
        left = length + (fitting & -fitting).bit_length() - 1 if fitting else size
        if fitting:
            pack = free[left].pop()
            if not free[left]:
                there &= ~(1 << left)
        else:
            pack, count = count, count + 1
        of_row[row] = pack
        if left > length:
            free[left - length].append(pack)
            there |= 1 << (left - length)
    # Packs are ordered by their first rows: without shuffling, that is nearly the order of the files.
    first = np.full(count, len(lengths))
    np.minimum.at(first, of_row, np.arange(len(lengths)))
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    rows = np.argsort(rank[of_row], kind="stable") if count else np.zeros(0, dtype=np.int64)
    sizes = np.bincount(rank[of_row], minlength=count) if count else np.zeros(0, dtype=np.int64)
    return Segments(
        rows, np.zeros_like(rows), np.asarray(lengths, dtype=np.int64)[rows], np.concatenate([[0], np.cumsum(sizes)])
    )


def fill_and_split(lengths: npt.NDArray[Any], size: int) -> Segments:
    """Packs rows in order into full packs; a row that does not fit is split between two packs.

    The second piece starts with the last token of the first piece, which is not trained there. The same tokens are
    predicted as without packing, each from the preceding tokens in its pack.

    Args:
        lengths: tokens of each row.
        size: tokens of a pack, at least 2.
    """
    rows, starts, ends, bounds, used = [], [], [], [0], 0
    for row, length in enumerate(lengths.tolist()):
        start = 0
        while True:
            end = min(length, start + size - used)
            if end - start >= min(2, length - start):  # a single token has no prediction
                rows.append(row)
                starts.append(start)
                ends.append(end)
                used += end - start
                if end == length:
                    break
                start = end - 1
            bounds.append(len(rows))
            used = 0
    if len(rows) > bounds[-1]:
        bounds.append(len(rows))
    return Segments(*(np.array(one, dtype=np.int64) for one in (rows, starts, ends, bounds)))


class PackedDataset:
    """A dataset of P packs.

    Args:
        dataset: the rows.
        segments: the packs.
    """

    def __init__(self, dataset: TokenDataset, segments: Segments) -> None:
        self.dataset, self.segments = dataset, segments

    @classmethod
    def of(cls, dataset: TokenDataset, size: int, *, split: bool) -> PackedDataset:
        """Packs the rows of a dataset.

        Args:
            dataset: the rows.
            size: tokens of a pack.
            split: whether rows are split between packs.
        """
        return cls(dataset, (fill_and_split if split else fill)(dataset.lengths, size))

    def __len__(self) -> int:
        return len(self.segments.packs) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_ids`` int32 and ``weights`` float32 ``[T]``, end to end; ``lengths`` ``[n]`` of the n pieces, and
        ``index`` ``[n]``, their rows' numbers.
        """
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        pieces = slice(int(self.segments.packs[index]), int(self.segments.packs[index + 1]))
        rows, starts, ends = (array[pieces] for array in self.segments[:3])
        items = [self.dataset[row] for row in rows.tolist()]
        spans = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        cut = list(zip(items, spans, strict=True))
        return {
            "input_ids": np.concatenate([item["input_ids"][span] for item, span in cut]),
            "weights": np.concatenate([item["weights"][span] for item, span in cut]),
            "lengths": ends - starts,
            "index": rows,
        }

    has_images = False
    """Rows with images are not packed."""

    @property
    def places(self) -> Sequence[Place]:
        """The place of each row; ``index`` of a piece is its row."""
        return self.dataset.places

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each pack, ``[P]``."""
        before = np.concatenate([[0], np.cumsum(self.segments.ends - self.segments.starts)])
        return np.diff(before[self.segments.packs])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of rows and packs."""
        digest = new_digest()
        for array in self.segments:
            digest.update(np.ascontiguousarray(array).data)
        return combined([self.dataset.fingerprint, digest.hexdigest()])
