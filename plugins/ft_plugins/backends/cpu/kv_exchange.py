"""Context parallelism on two threads: a packed row in two parts, of which the second attends to keys of the first.

Attention is causal, so the first part needs nothing of the second in the forward pass. In each layer it sends its keys
and values, and in the backward pass it receives their gradients. A row can therefore be split anywhere, also within a
sequence, into parts of equal work. Ring attention (arXiv 2310.01889) does the same between devices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from ftcore.training.attention.layout import Prefixes, RowPart, add_parts
from ftcore.training.batching.collators import Batch

KeysValues = tuple[torch.Tensor, torch.Tensor]


class KVChannel:
    """Exchange of tensors between two threads, by the number of the attention call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._there: dict[tuple[str, int], KeysValues] = {}
        self._cause: BaseException | None = None

    def send(self, what: str, call: int, pair: KeysValues) -> None:
        """Sends a pair of tensors; each is received once."""
        with self._changed:
            self._there[what, call] = pair
            self._changed.notify_all()

    def receive(self, what: str, call: int) -> KeysValues:
        """Waits for a pair of tensors.

        Raises:
            BaseException: the error of the other thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: (what, call) in self._there or self._cause is not None)
            if self._cause is not None:
                raise self._cause
            return self._there.pop((what, call))

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Raises an error of this thread in the other one too, which would wait forever."""
        try:
            yield
        except BaseException as error:
            with self._changed:
                self._cause = self._cause or error
                self._changed.notify_all()
            raise


@dataclass(slots=True)
class KVPart:
    """One part's side of the exchange, in the order of its attention calls.

    Args:
        channel: shared with the other part.
        remote_ranges: for each sequence of the second part, the tokens of the first part that it sees; None for the
            first part, which sends.
    """

    channel: KVChannel
    remote_ranges: tuple[tuple[slice, ...], ...] | None = None
    calls: int = field(default=0, init=False)

    def begin(self, key: torch.Tensor, value: torch.Tensor) -> KVSlice:
        """Starts an attention call with this part's keys and values."""
        call, self.calls = self.calls, self.calls + 1
        if self.remote_ranges is None:
            self.channel.send("kv", call, (key.detach(), value.detach()))
            return KVSlice(self, call, None)
        return KVSlice(self, call, self.channel.receive("kv", call))


@dataclass(slots=True)
class KVSlice:
    """The exchange of one attention call.

    Args:
        part: that makes the call.
        call: its number.
        remote: in the second part, the first part's keys and values ``[1, key heads, N, size]``; else None.
    """

    part: KVPart
    call: int
    remote: KeysValues | None
    _remote_grad: KeysValues | None = field(default=None, init=False)

    def tokens(self, sequence: int) -> tuple[slice, ...]:
        """The tokens of the first part that a sequence of the second part sees."""
        return () if self.part.remote_ranges is None else self.part.remote_ranges[sequence]

    def add_grad(self, tokens: Sequence[slice], of_key: torch.Tensor, of_value: torch.Tensor) -> None:
        """Adds gradients of remote keys and values, ``[1, key heads, tokens, size]``."""
        assert self.remote is not None
        if self._remote_grad is None:
            self._remote_grad = torch.zeros_like(self.remote[0]), torch.zeros_like(self.remote[1])
        for total, values in zip(self._remote_grad, (of_key, of_value), strict=True):
            add_parts(total, tokens, values)

    def send_grads(self, of_key: torch.Tensor, of_value: torch.Tensor) -> None:
        """Ends the call's backward pass: the second part sends the gradients, the first receives and adds them."""
        if self.remote is not None:
            assert self._remote_grad is not None
            self.part.channel.send("grad", self.call, self._remote_grad)
            self._remote_grad = None
            return
        for own, received in zip((of_key, of_value), self.part.channel.receive("grad", self.call), strict=True):
            own += received


def split_row(batch: Batch, at: int) -> tuple[Batch, Batch]:
    """Splits a packed row into two batches; the labels of the first come before those of the second.

    Args:
        batch: sequences end to end, N tokens.
        at: tokens of the first part.
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
    channel = KVChannel() if any(borrowed) else None
    sides = (None, None) if channel is None else (KVPart(channel), KVPart(channel, tuple(borrowed)))
    parts = (
        ([start for start, _ in first], [ranges for _, ranges in first], slice(0, at), sides[0]),
        (second, own, slice(at, count), sides[1]),
    )
    one, other = (_part(batch, *part) for part in parts)
    return one, other


def _part(batch: Batch, starts: list[int], prefixes: Prefixes, tokens: slice, kv_part: RowPart | None) -> Batch:
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
    return found if kv_part is None else {**found, "kv_part": kv_part}
