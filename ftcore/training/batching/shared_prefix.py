"""Tokens that several sequences of a batch begin with are computed once: a batch as a tree of sequences.

A sequence goes on from the longest beginning that it has in common with one before it in the batch, which may itself
go on from another one: a system prompt that all rows have, and within it the prompt that two answers have. Only tokens
before the sequence's first label are left out, so that every label keeps a place of its own; the last token of what is
shared predicts a label, and is there again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ftcore.training.batching.collators import Batch
from ftcore.training.cost_model.prefix import Shares

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefixSharingCollator:
    """A collator whose batches have common beginnings once.

    Args:
        collate: makes a batch of rows; a batch may have further ones inside, as ``mismatched`` of `collate_feedback`.
        shares: for which sequences; None for none.
    """

    collate: Callable[[Sequence[Mapping[str, Any]]], Batch]
    shares: Shares | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """See `share_prefixes`."""
        batch = self.collate(rows)
        return batch if self.shares is None else share_prefixes(batch, self.shares)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Where a sequence is.

    Args:
        start, end: of its tokens, in the batch as it came.
        parent: number of the sequence that it goes on from.
        common: how many of its tokens are that one's.
        place: where its other tokens begin in the batch that is made.
    """

    start: int
    end: int
    parent: int = 0
    common: int = 0
    place: int = 0


def share_prefixes(batch: Batch, shares: Shares) -> Batch:
    """The batch with common beginnings once, as far as ``shares`` says; the same labels in the same order.

    Args:
        batch: of `collate`. What it has of shape ``[1, N]`` is one number for each token, whatever its name.
        shares: whether it pays, by the tokens that are shared and those that go on.

    Returns:
        Where something is shared, ``prefixes`` besides: for each sequence the ``(start, end)`` of what comes before it,
        in their order; see `ftcore.training.attention.varlen`. ``position_ids`` go on from the branch.
    """
    batch = {name: share_prefixes(value, shares) if _is_batch(value) else value for name, value in batch.items()}
    if "images" in batch or "prefixes" in batch:  # sequences with images are computed one by one
        return batch
    sequences = _tree(batch, shares)
    if not any(one.common for one in sequences):
        return batch
    count = batch["input_ids"].numel()
    kept = torch.cat([torch.arange(one.start + one.common, one.end) for one in sequences])
    places = torch.full((count,), -1)
    places[kept] = torch.arange(len(kept))
    made = {
        name: value[:, kept] if isinstance(value, torch.Tensor) and value.shape == (1, count) else value
        for name, value in batch.items()
    }
    return made | {
        "positions": places[batch["positions"]],
        "cu_seqlens": torch.tensor([*(one.place for one in sequences), len(kept)], dtype=torch.int32),
        "max_len": max(one.end - one.start - one.common for one in sequences),
        "prefixes": tuple(tuple(_ranges(sequences, one.parent, one.common)) for one in sequences),
    }


def _is_batch(value: Any) -> bool:
    return isinstance(value, dict) and "cu_seqlens" in value


def _tree(batch: Batch, shares: Shares) -> list[_Sequence]:
    """The sequences, each with what it goes on from."""
    bounds = list(pairwise(batch["cu_seqlens"].tolist()))
    ids, positions = batch["input_ids"][0].numpy(), batch["positions"].numpy()
    # the first label's own place is not left out: it stands at the token before
    labels = np.append(positions, len(ids))[np.searchsorted(positions, [start for start, _ in bounds])]
    limits = [min(int(label), end - 1) - start for label, (start, end) in zip(labels, bounds, strict=True)]
    found = longest_common([ids[start:end] for start, end in bounds])
    sequences: list[_Sequence] = []
    place = 0
    for (start, end), limit, (parent, common) in zip(bounds, limits, found, strict=True):
        common = min(common, limit)
        one = _Sequence(start, end, place=place)
        if common and shares(common, end - start - common):
            one = replace(one, parent=parent, common=common)
        sequences.append(one)
        place += end - start - one.common
    return sequences


def _ranges(sequences: Sequence[_Sequence], number: int, tokens: int) -> list[tuple[int, int]]:
    """Where in the batch that is made the first tokens of a sequence are."""
    found: list[tuple[int, int]] = []
    while tokens:
        one = sequences[number]
        if tokens > one.common:
            found.append((one.place, one.place + tokens - one.common))
            tokens = one.common
        number = one.parent
    return found[::-1]


def longest_common(rows: Sequence[Tokens]) -> list[tuple[int, int]]:
    """For each row the one before it with which it has the longest beginning in common, and its tokens.

    In alphabetical order a row's longest beginning is that of a neighbour, so that not every two rows are compared.

    Args:
        rows: of tokens, each ``[L]``.

    Returns:
        ``(row, tokens)``, of equally long ones any; (0, 0) where no row before begins alike.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row].astype(">u4").tobytes())
    alike = [_common(rows[one], rows[next_]) for one, next_ in pairwise(order)]
    found = [(0, 0)] * len(rows)
    for place, row in enumerate(order):
        left = _nearest_before(row, order[:place][::-1], alike[:place][::-1])
        right = _nearest_before(row, order[place + 1 :], alike[place:])
        found[row] = max(left, right, key=lambda one: one[1])
    return found


def _nearest_before(row: int, others: Sequence[int], alike: Sequence[int]) -> tuple[int, int]:
    """The first of the others that comes before the row in the batch, and what they have in common."""
    common = None
    for other, tokens in zip(others, alike, strict=True):
        common = tokens if common is None else min(common, tokens)
        if not common:
            break
        if other < row:
            return other, common
    return 0, 0


def _common(one: Tokens, other: Tokens) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
