"""Sequences of a packed row, and their shared prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

Prefixes = Sequence[Sequence[tuple[int, int]]]
"""For each sequence, the ranges ``(start, end)`` of the row's tokens that it sees before its own, in order."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence of a row.

    Args:
        own: its tokens.
        before: its prefix, tokens of sequences before it in the row; empty for none.
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
    """Adds consecutive parts of ``values`` to the given ranges of tokens, in place."""
    for some, part in zip(tokens, values.split([some.stop - some.start for some in tokens], 2), strict=True):
        total[:, :, some] += part
