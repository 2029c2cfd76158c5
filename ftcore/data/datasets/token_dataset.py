"""A map-style dataset of tokenised rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ftcore.data.storage.arrays import Ints, SourceLocations, Table
from ftcore.errors import Problem, UsageError
from ftcore.utils.hashing import combined, sha256_of


class TokenDataset:
    """R rows of tables, which are not copied and may be larger than memory.

    Args:
        tables: the tables of tokens.
        rows: int64 ``[R]``, row indices over the concatenated tables; None for all rows in order.
    """

    def __init__(self, tables: Sequence[Table], rows: Ints | None = None) -> None:
        self.tables = tuple(tables)
        self._starts = np.concatenate([[0], np.cumsum([len(table) for table in self.tables])]).astype(np.int64)
        self._rows = rows

    @classmethod
    def over(cls, tables: Sequence[Table]) -> TokenDataset:
        """All rows of these tables."""
        return cls(tables)

    @property
    def rows(self) -> Ints:
        """Row indices over the concatenated tables, ``[R]``."""
        return np.arange(self._starts[-1]) if self._rows is None else self._rows

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_ids`` int32 ``[T]``, ``weights`` float32 ``[T]``, and ``index``; ``images`` if the row has images."""
        table, row = self._row(int(index))
        tokens = slice(int(table.offsets[row]), int(table.offsets[row + 1]))
        item = {"input_ids": table.ids[tokens], "weights": table.weights[tokens], "index": int(index)}
        return item | {"images": table.images[row]} if row in table.images else item

    @property
    def has_images(self) -> bool:
        """Whether any row of the tables has images."""
        return any(table.images for table in self.tables)

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """The token ids of all rows, concatenated, int32 ``[N]``."""
        return self._joined("ids", np.int32)

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """The loss weight of each token, float32 ``[N]``; 0: not trained."""
        return self._joined("weights", np.float32)

    @property
    def reasons(self) -> npt.NDArray[np.uint8]:
        """Why each token is trained or not, `ftcore.data.tokenization.loss_reasons.Reason`, uint8 ``[N]``."""
        return self._joined("reasons", np.uint8)

    @property
    def offsets(self) -> Ints:
        """Start of each row in these arrays, and the end of the last, int64 ``[R + 1]``."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def _joined(self, name: str, dtype: Any) -> npt.NDArray[Any]:
        parts = [self._at(index) for index in range(len(self))]
        return np.concatenate([np.zeros(0, dtype), *(getattr(table, name)[start:end] for table, start, end in parts)])

    def _at(self, index: int) -> tuple[Table, int, int]:
        table, row = self._row(index)
        return table, int(table.offsets[row]), int(table.offsets[row + 1])

    def _row(self, index: int) -> tuple[Table, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = index if self._rows is None else int(self._rows[index])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.tables[number], row - int(self._starts[number])

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each row, ``[R]``."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(table.offsets) for table in self.tables)])
        return lengths if self._rows is None else lengths[self._rows]

    @cached_property
    def times(self) -> Ints:
        """The repeat count of each row from ``num_samples``, ``[R]``."""
        times = np.concatenate([np.zeros(0, np.int64), *(table.times for table in self.tables)])
        return times if self._rows is None else times[self._rows]

    @cached_property
    def places(self) -> SourceLocations:
        """The place of each row."""
        files = [file for table in self.tables for file in table.places.files]
        numbers, before = [np.zeros((0, 3), np.int64)], 0
        for table in self.tables:
            numbers.append(table.places.numbers + np.array([before, 0, 0]))
            before += len(table.places.files)
        together = np.concatenate(numbers)
        return SourceLocations(files, together if self._rows is None else together[self._rows])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the training data in its order."""
        prints: list[str] = [table.fingerprint for table in self.tables]
        if self._rows is not None:
            prints.append(sha256_of(self._rows.tobytes()))
        return prints[0] if len(prints) == 1 else combined(prints)

    def take(self, indices: Ints) -> TokenDataset:
        """These rows, in this order."""
        return TokenDataset(self.tables, np.ascontiguousarray(self.rows[indices], dtype=np.int64))

    def split(self, val_size: float, seed: int) -> tuple[TokenDataset, TokenDataset]:
        """Splits the rows into training and evaluation rows; see `split_rows`."""
        train, held_out = split_rows(len(self), val_size, seed)
        return self.take(train), self.take(held_out)


def split_rows(rows: int, val_size: float, seed: int) -> tuple[Ints, Ints]:
    """Draws evaluation rows; returns the indices of training and evaluation rows, both sorted.

    Args:
        rows: number of rows.
        val_size: share of the rows (below 1, rounded up) or number of rows.
        seed: seed of the draw.

    Raises:
        UsageError: no rows would be left to train on.
    """
    count = math.ceil(val_size * rows) if val_size < 1 else int(val_size)
    if count >= rows:
        message = f"val_size {val_size:g} takes {count:,} rows of {rows:,}: no rows are left to train on"
        raise UsageError(Problem(message, hint="write a smaller val_size"))
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[count:]), np.sort(order[:count])
