"""Tokenised preferences and feedback: a prompt and its answers, in the flat arrays of `TokenDataset`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftcore.api.samples import Place
from ftcore.data.datasets.token_dataset import TokenDataset, split_rows
from ftcore.data.preprocessing.prepare import AnyPrepared, Prepared, PreparedFeedback, PreparedPair
from ftcore.data.storage.arrays import Table, TokenizedRow

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_PARTS = 3


class AnswerDataset(ABC):
    """R rows of three parts: prompt, good answer and bad answer, each with ids, weights and reasons.

    Args:
        parts: 3R rows, in this order.
    """

    def __init__(self, parts: TokenDataset) -> None:
        assert len(parts) % _PARTS == 0
        self.parts = parts

    @classmethod
    def over(cls, tables: Sequence[Table]) -> Self:
        """All rows of these tables; each table row is a part."""
        return cls(TokenDataset(tables))

    def __len__(self) -> int:
        return len(self.parts) // _PARTS

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index``."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, with the prompt counted once, ``[R]``."""
        return self.part_lengths.sum(axis=1)

    @property
    def row_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of all sequences of each row, with the prompt counted once per answer, ``[R]``."""
        answers = self.part_lengths[:, 1:]
        return answers.sum(axis=1) + self.part_lengths[:, 0] * (answers > 0).sum(axis=1)

    @property
    def computed_tokens(self) -> int:
        """Tokens of all sequences of an epoch."""
        return int(self.row_tokens.sum())

    @property
    def part_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of prompt, good and bad answer, ``[R, 3]``."""
        return self.parts.lengths.reshape(-1, _PARTS)

    @property
    def times(self) -> npt.NDArray[np.int64]:
        """The repeat count of each row from ``num_samples``, ``[R]``."""
        return self.parts.times[::_PARTS]

    @property
    def places(self) -> Sequence[Place]:
        """The place of each row."""
        return self.parts.places[::_PARTS]

    @property
    def fingerprint(self) -> str:
        """sha256 of the training data."""
        return self.parts.fingerprint

    def take(self, indices: npt.NDArray[np.int64]) -> Self:
        """These rows, in this order."""
        return type(self)(self.parts.take((indices[:, None] * _PARTS + np.arange(_PARTS)).reshape(-1)))

    def split(self, val_size: float, seed: int) -> tuple[Self, Self]:
        """Splits the rows into training and evaluation rows; see `ftcore.data.datasets.token_dataset.split_rows`."""
        train, held_out = split_rows(len(self), val_size, seed)
        return self.take(train), self.take(held_out)

    def _part(self, index: int, part: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.parts[index * _PARTS + part]


class PairDataset(AnswerDataset):
    """Preferences."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``prompt_ids`` ``[P]``, ``chosen_ids`` ``[C]``, ``rejected_ids`` ``[R]`` int32, and ``index``.

        ``chosen_weights`` and ``rejected_weights`` float32 are each token's weight as a target. The prompt is what both
        sides share before the first trained token; it is never a target.
        """
        index = int(index)
        prompt, chosen, rejected = (self._part(index, part) for part in range(_PARTS))
        return {
            "prompt_ids": prompt["input_ids"],
            "chosen_ids": chosen["input_ids"],
            "chosen_weights": chosen["weights"],
            "rejected_ids": rejected["input_ids"],
            "rejected_weights": rejected["weights"],
            "index": index,
        }


class FeedbackDataset(AnswerDataset):
    """Answers labelled good or bad; one of the two answer parts of a row is empty."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``prompt_ids`` ``[P]`` and ``answer_ids`` ``[A]`` int32, ``answer_weights`` float32, ``good``, ``index``."""
        index = int(index)
        good = bool(self.good[index])
        answer = self._part(index, 1 if good else 2)
        return {
            "prompt_ids": self._part(index, 0)["input_ids"],
            "answer_ids": answer["input_ids"],
            "answer_weights": answer["weights"],
            "good": good,
            "index": index,
        }

    @property
    def computed_tokens(self) -> int:
        """Tokens of an epoch; each prompt is also computed with the answer of another row."""
        return int(2 * self.lengths.sum())

    @cached_property
    def good(self) -> npt.NDArray[np.bool_]:
        """The label of each row, ``[R]``."""
        return self.part_lengths[:, 1] > 0


def answer_parts(place: Place, row: AnyPrepared) -> list[TokenizedRow]:
    """Splits a preference or feedback row into its three parts."""
    if isinstance(row, PreparedPair):
        chosen, rejected, prompt = row.chosen, row.rejected, row.prompt
        return [
            _kept(place, chosen, 0, prompt),
            _kept(place, chosen, prompt, chosen.kept),
            _kept(place, rejected, prompt, rejected.kept),
        ]
    assert isinstance(row, PreparedFeedback)
    answer, none = _kept(place, row.chat, row.prompt, row.chat.kept), _kept(place, row.chat, 0, 0)
    return [_kept(place, row.chat, 0, row.prompt), *((answer, none) if row.good else (none, answer))]


def _kept(place: Place, row: Prepared, first: int, last: int) -> TokenizedRow:
    part, labelled = slice(first, last), row.labelled
    # Copies: a view would keep truncated tokens in memory.
    return TokenizedRow(
        place, labelled.encoded.ids[part].copy(), labelled.weights[part].copy(), labelled.reasons[part].copy()
    )
