"""Tokenised rows in flat arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ftcore.data.preparing import Prepared
from ftcore.errors import Problem, UsageError
from ftcore.samples import Place


class KeptRow(NamedTuple):
    """What is kept of a prepared row: T tokens."""

    place: Place
    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    reasons: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, place: Place, row: Prepared) -> KeptRow:
        """Copies: a view would keep the tokens that were cut off in memory."""
        labelled, kept = row.labelled, row.kept
        return cls(
            place, labelled.encoded.ids[:kept].copy(), labelled.weights[:kept].copy(), labelled.reasons[:kept].copy()
        )


class TokenDataset:
    """R rows, N tokens in all, as a map-style dataset.

    Args:
        ids: int32 ``[N]``.
        weights: float32 ``[N]``: a token's weight as a target; 0 is not trained.
        reasons: uint8 ``[N]``, `ftcore.data.reasons.Reason`.
        offsets: int64 ``[R + 1]``: row i is tokens ``offsets[i]`` to ``offsets[i + 1]``.
        places: where each row came from.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        weights: npt.NDArray[np.float32],
        reasons: npt.NDArray[np.uint8],
        offsets: npt.NDArray[np.int64],
        places: Sequence[Place],
    ) -> None:
        assert len(ids) == len(weights) == len(reasons) == offsets[-1]
        assert len(offsets) == len(places) + 1
        self.ids, self.weights, self.reasons, self.offsets, self.places = ids, weights, reasons, offsets, tuple(places)

    @classmethod
    def of(cls, rows: Sequence[KeptRow]) -> TokenDataset:
        """These rows, in this order."""
        return cls(
            _joined([row.ids for row in rows], np.int32),
            _joined([row.weights for row in rows], np.float32),
            _joined([row.reasons for row in rows], np.uint8),
            np.concatenate([[0], np.cumsum([len(row.ids) for row in rows])]).astype(np.int64),
            [row.place for row in rows],
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``input_ids`` int32 ``[T]``, ``weights`` float32 ``[T]``, and ``index`` itself."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = slice(self.offsets[index], self.offsets[index + 1])
        return {"input_ids": self.ids[row], "weights": self.weights[row], "index": index}

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, ``[R]``."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what is trained: ids, weights and where rows begin."""
        digest = hashlib.sha256()
        for array in (self.ids, self.weights, self.offsets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def take(self, indices: npt.NDArray[np.int64]) -> TokenDataset:
        """These rows, in this order."""
        rows = [slice(self.offsets[index], self.offsets[index + 1]) for index in indices]
        return TokenDataset.of(
            [
                KeptRow(self.places[index], self.ids[row], self.weights[row], self.reasons[row])
                for index, row in zip(indices, rows, strict=True)
            ]
        )

    def split(self, val_size: float, seed: int) -> tuple[TokenDataset, TokenDataset]:
        """Rows to train on and rows to evaluate on; see `split_rows`."""
        train, held_out = split_rows(len(self), val_size, seed)
        return self.take(train), self.take(held_out)


def split_rows(rows: int, val_size: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the rows to train on and to evaluate on, drawn at random, both in their old order.

    Args:
        rows: how many there are.
        val_size: share of the rows (below 1, rounded up) or their number.
        seed: of the draw.

    Raises:
        UsageError: nothing would be left to train on.
    """
    count = math.ceil(val_size * rows) if val_size < 1 else int(val_size)
    if count >= rows:
        message = f"val_size {val_size:g} takes {count:,} rows of {rows:,}: none is left to train on"
        raise UsageError(Problem(message, hint="give a smaller val_size"))
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[count:]), np.sort(order[:count])


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype=dtype)
