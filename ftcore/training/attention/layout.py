"""Sequences of a row, and what each sees besides its own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass


Prefixes = Sequence[Sequence[tuple[int, int]]]
"""For each sequence the tokens of the row, ``start`` to ``end``, that it sees besides its own, in their order."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence: its tokens in the row, and those that come before them for its queries.

    Args:
        own: its tokens.
        before: the prefix's, of sequences that lie before it; empty for none.
    """

    own: slice
    before: tuple[slice, ...] = ()


def spans(lengths: Sequence[int], prefixes: Prefixes) -> Iterator[Span]:
    """The sequences of a row."""
    start = 0
    for length, ranges in zip(lengths, prefixes, strict=True):
        yield Span(slice(start, start + length), tuple(slice(first, last) for first, last in ranges))
        start += length


def add_parts(total: torch.Tensor, tokens: Sequence[slice], values: torch.Tensor) -> None:
    """Adds, in place, what stands for what `_parts` took."""
    for some, part in zip(tokens, values.split([some.stop - some.start for some in tokens], 2), strict=True):
        total[:, :, some] += part
