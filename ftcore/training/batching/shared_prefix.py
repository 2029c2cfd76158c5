"""Shared prefixes: tokens with which several sequences of a batch begin are computed once, as a prefix tree.

A sequence shares its longest common prefix with a sequence before it in the batch, which may itself share a prefix: all
rows may have the same system prompt, and two answers the same prompt. Only tokens before a sequence's first label are
shared, so that every label keeps its own position. The last shared token before a label is repeated, as it predicts
the label.
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
    """A collator whose batches hold shared prefixes once.

    Args:
        collate: makes a batch of rows, which may contain further batches, as ``mismatched`` of `collate_feedback`.
        shares: decides which sequences share a prefix; None for none.
    """

    collate: Callable[[Sequence[Mapping[str, Any]]], Batch]
    shares: Shares | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """See `share_prefixes`."""
        batch = self.collate(rows)
        return batch if self.shares is None else share_prefixes(batch, self.shares)


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A sequence of the prefix tree.

    Args:
        start, end: of its tokens in the original batch.
        parent: number of the sequence whose prefix it shares.
        common: number of shared tokens.
        place: start of its own tokens in the new batch.
    """

    start: int
    end: int
    parent: int = 0
    common: int = 0
    place: int = 0


def share_prefixes(batch: Batch, shares: Shares) -> Batch:
    """The batch with shared prefixes once, where ``shares`` allows it; the same labels in the same order.

    Args:
        batch: of `collate`. Every tensor of shape ``[1, N]`` is taken to hold one number per token.
        shares: decides from the numbers of shared tokens and of a sequence's own.

    Returns:
        If prefixes are shared, the batch also has ``prefixes``: for each sequence the ranges ``(start, end)`` of its
        prefix, in order; see `ftcore.training.attention.varlen`. ``position_ids`` continue after the prefix.
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
    """The sequences with their parents."""
    bounds = list(pairwise(batch["cu_seqlens"].tolist()))
    ids, positions = batch["input_ids"][0].numpy(), batch["positions"].numpy()
    # a label is at the position of the token before it, which must not be shared
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
    """The ranges of a sequence's first tokens in the new batch."""
    found: list[tuple[int, int]] = []
    while tokens:
        one = sequences[number]
        if tokens > one.common:
            found.append((one.place, one.place + tokens - one.common))
            tokens = one.common
        number = one.parent
    return found[::-1]


def longest_common(rows: Sequence[Tokens]) -> list[tuple[int, int]]:
    """For each row the earlier row with the longest common prefix, and the length of the prefix.

    In lexicographic order the longest common prefix is that with a neighbour, so not all pairs of rows are compared.

    Args:
        rows: of tokens, each ``[L]``.

    Returns:
        ``(row, tokens)``; any row of equally long prefixes, and (0, 0) for no common prefix.
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
    """The first of the others that is before the row in the batch, and the length of their common prefix."""
    common = None
    for other, tokens in zip(others, alike, strict=True):
        common = tokens if common is None else min(common, tokens)
        if not common:
            break
        if other < row:
            return other, common
    return 0, 0


def _common(one: Tokens, other: Tokens) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
