"""Sequences of a packed row, and their shared prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

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


class RowPartCall(Protocol):
    """One attention call of a part of a row: the exchange of keys and values with the other part."""

    remote: tuple[torch.Tensor, torch.Tensor] | None
    """Keys and values ``[1, key heads, N, size]`` of the other part; None in the part that sends its own."""

    def tokens(self, sequence: int) -> tuple[slice, ...]:
        """The tokens of the other part that a sequence sees before those of this part."""

    def add_grad(self, tokens: Sequence[slice], of_key: torch.Tensor, of_value: torch.Tensor) -> None:
        """Adds gradients of remote keys and values, ``[1, key heads, tokens, size]``."""

    def send_grads(self, of_key: torch.Tensor, of_value: torch.Tensor) -> None:
        """Ends the backward pass; received gradients are added to the given ones, of this part's keys and values."""


class RowPart(Protocol):
    """A row that is one part of a longer one, of which another worker computes the other part.

    The core hands it to the kernel as it is. The backend that splits rows makes it, and its kernels use it.
    """

    def begin(self, key: torch.Tensor, value: torch.Tensor) -> RowPartCall:
        """Starts an attention call with this part's keys and values ``[1, key heads, N, size]``."""


@dataclass(frozen=True)
class RowLayout:
    """Where the sequences of a packed row of N tokens are. What is computed of it is computed when first asked for.

    Args:
        starts: int32 ``[sequences + 1]`` on the row's device: where each sequence starts, and N.
        prefixes: for each sequence the ranges of its prefix, in sequences before it; None for no prefixes.
        longest_known: length of the longest sequence; None where unknown.
        kv_part: where another worker computes another part of the row; else None.
    """

    starts: torch.Tensor
    prefixes: Prefixes | None = None
    longest_known: int | None = None
    kv_part: RowPart | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, without its prefix. On a GPU this waits for all work before it."""
        return [int(length) for length in self.starts.diff().tolist()]

    @cached_property
    def keys(self) -> list[int]:
        """Number of keys that each sequence's last token sees."""
        if not self.prefixes:
            return self.lengths
        return [
            length + sum(last - first for first, last in ranges)
            for length, ranges in zip(self.lengths, self.prefixes, strict=True)
        ]

    @cached_property
    def longest(self) -> int:
        """Length of the longest sequence, without its prefix."""
        return int(self.starts.diff().max()) if self.longest_known is None else self.longest_known

    def spans(self) -> list[Span]:
        """The sequences."""
        return list(spans(self.lengths, self.prefixes or [()] * len(self.lengths)))


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


def sequence_parts(tensor: torch.Tensor, layout: RowLayout) -> Sequence[torch.Tensor]:
    """Each sequence's keys or values ``[1, heads, S, size]``, after those of its prefix.

    Args:
        tensor: ``[1, heads, N, size]``.
        layout: of the row.
    """
    # split instead of slices: its backward is one concatenation, a slice's a zero tensor of full size per sequence
    own = tensor.split(layout.lengths, 2)
    if not layout.prefixes:
        return own
    return [
        torch.cat([*(tensor[:, :, first:last] for first, last in ranges), part], 2) if ranges else part
        for part, ranges in zip(own, layout.prefixes, strict=True)
    ]
