"""A row of sequences in two parts that are computed side by side: the second attends to keys and values of the first.

Causal attention sees what lies before, so the first part needs nothing of the second one on the way forward. In each
layer it lends its keys and values, and in the backward pass it waits for the gradients that the second part has for
them. A row can so be cut anywhere, in the middle of a sequence too, and both halves be even; rows as they are may not
be. (Ring attention, arXiv 2310.01889, does this between devices.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from ftcore.training.attention.layout import Prefixes, add_parts
from ftcore.training.batching.collators import Batch

KeysValues = tuple[torch.Tensor, torch.Tensor]


class KVChannel:
    """What two threads hand to each other, by the number of the attention call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._there: dict[tuple[str, int], KeysValues] = {}
        self._cause: BaseException | None = None

    def put(self, what: str, call: int, pair: KeysValues) -> None:
        """Hands over; each is taken once."""
        with self._changed:
            self._there[what, call] = pair
            self._changed.notify_all()

    def take(self, what: str, call: int) -> KeysValues:
        """Waits for it.

        Raises:
            BaseException: what the other thread ended with.
        """
        with self._changed:
            self._changed.wait_for(lambda: (what, call) in self._there or self._cause is not None)
            if self._cause is not None:
                raise self._cause
            return self._there.pop((what, call))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Where an error is the other thread's, too: it would wait for good."""
        try:
            yield
        except BaseException as error:
            with self._changed:
                self._cause = self._cause or error
                self._changed.notify_all()
            raise


@dataclass(slots=True)
class KVPart:
    """One part's end of it, in the order of its attention calls.

    Args:
        lending: shared with the other part.
        borrowed: of the second part, for each of its sequences the first part's tokens that come before it; None for
            the first part, which lends.
    """

    lending: KVChannel
    borrowed: tuple[tuple[slice, ...], ...] | None = None
    calls: int = field(default=0, init=False)

    def begin(self, key: torch.Tensor, value: torch.Tensor) -> KVSlice:
        """Of an attention call, with this part's own keys and values."""
        call, self.calls = self.calls, self.calls + 1
        if self.borrowed is None:
            self.lending.put("lent", call, (key.detach(), value.detach()))
            return KVSlice(self, call, None)
        return KVSlice(self, call, self.lending.take("lent", call))


@dataclass(slots=True)
class KVSlice:
    """Of one attention call.

    Args:
        side: whose.
        call: its number.
        lent: the first part's keys and values, ``[1, key heads, N, size]``, for the second part.
    """

    side: KVPart
    call: int
    lent: KeysValues | None
    _owed: KeysValues | None = field(default=None, init=False)

    def tokens(self, sequence: int) -> tuple[slice, ...]:
        """The first part's tokens that a sequence of the second one sees."""
        return () if self.side.borrowed is None else self.side.borrowed[sequence]

    def owe(self, tokens: Sequence[slice], of_key: torch.Tensor, of_value: torch.Tensor) -> None:
        """Adds gradients for what was lent, ``[1, key heads, tokens, size]``."""
        assert self.lent is not None
        if self._owed is None:
            self._owed = torch.zeros_like(self.lent[0]), torch.zeros_like(self.lent[1])
        for total, values in zip(self._owed, (of_key, of_value), strict=True):
            add_parts(total, tokens, values)

    def settle(self, of_key: torch.Tensor, of_value: torch.Tensor) -> None:
        """At the end of the call's backward pass: hands back what is owed, or adds it to one's own gradients."""
        if self.lent is not None:
            assert self._owed is not None
            self.side.lending.put("owed", self.call, self._owed)
            self._owed = None
            return
        for own, owed in zip((of_key, of_value), self.side.lending.take("owed", self.call), strict=True):
            own += owed


def split_row(batch: Batch, at: int) -> tuple[Batch, Batch]:
    """A batch's row in two, each with what a scorer reads; the labels are the first part's, then the second's.

    Args:
        batch: sequences end to end, N tokens.
        at: how many of them are in the first part.
    """
    starts, count = batch["cu_seqlens"].tolist(), batch["input_ids"].numel()
    before = batch.get("prefixes", ((),) * (len(starts) - 1))
    first, second, own, borrowed = [], [], [], []
    for (start, end), ranges in zip(pairwise(starts), before, strict=True):
        if start < at:
            first.append((start, tuple(ranges)))
        if end > at:
            seen = [*ranges, (start, at)] if start < at else ranges
            second.append(max(start - at, 0))
            borrowed.append(tuple(slice(one, min(last, at)) for one, last in seen if one < at))
            own.append(tuple((max(one, at) - at, last - at) for one, last in seen if last > at))
    lending = KVChannel() if any(borrowed) else None
    sides = (None, None) if lending is None else (KVPart(lending), KVPart(lending, tuple(borrowed)))
    parts = (
        ([start for start, _ in first], [ranges for _, ranges in first], slice(0, at), sides[0]),
        (second, own, slice(at, count), sides[1]),
    )
    one, other = (_part(batch, *part) for part in parts)
    return one, other


def _part(batch: Batch, starts: list[int], prefixes: Prefixes, tokens: slice, side: KVPart | None) -> Batch:
    ends = [*starts, tokens.stop - tokens.start]
    positions = batch["positions"]
    found: dict[str, Any] = {
        name: batch[name][:, tokens] for name in ("input_ids", "position_ids", "labels", "weights")
    }
    found["cu_seqlens"] = torch.tensor(ends, dtype=torch.int32)
    found["max_len"] = max(end - start for start, end in pairwise(ends))
    found["positions"] = positions[(positions >= tokens.start) & (positions < tokens.stop)] - tokens.start
    if any(prefixes):
        found["prefixes"] = tuple(prefixes)
    return found if side is None else {**found, "side": side}
