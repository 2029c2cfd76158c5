"""Keys and values of several answers in one cache, left-padded; rows join and leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def supports_batching(model: Any) -> bool:
    """Whether a model remembers in keys and values alone, of which rows can be joined and left out."""
    layers = _empty(model.config).layers
    return not getattr(model, "_is_stateful", False) and all(type(layer) is DynamicLayer for layer in layers)


def _empty(config: Any) -> Any:
    make: Any = DynamicCache
    return make(config=config)


class BatchKVCache:
    """A cache of rows, all as long as the longest; shorter ones are padded on the left.

    Args:
        config: the model's.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.cache, self.lengths = self.fresh(), list[int]()

    def fresh(self) -> Any:
        """An empty cache for a prompt that is to be added."""
        return _empty(self._config)

    def add(self, cache: Any, length: int, copies: int) -> None:
        """Takes in a prompt's cache of one row, so many times."""
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        self._join(cache, [length] * copies)

    def join(self, other: BatchKVCache) -> None:
        """Takes in the rows of another memory, which is not used any more."""
        if other.lengths:
            self._join(other.cache, other.lengths)

    def part(self, rows: Sequence[int]) -> BatchKVCache:
        """A memory of its own with some of these rows."""
        part = BatchKVCache(self._config)
        part.lengths = [self.lengths[row] for row in rows]
        cut = max(self.lengths) - max(part.lengths)
        for number, layer in enumerate(self.cache.layers):
            if layer.is_initialized:
                index = torch.tensor(rows, device=layer.keys.device)
                part.cache.update(layer.keys[index, :, cut:], layer.values[index, :, cut:], number)
        return part

    def undo_pass(self) -> None:
        """Takes back what a forward pass that failed on its way wrote into some layers."""
        longest = max(self.lengths)
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:, :, :longest], layer.values[:, :, :longest]

    def grow(self) -> None:
        """Counts the token that a forward pass has written to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, rows: Sequence[int]) -> None:
        """Leaves out all other rows, and the padding that only these needed."""
        before = max(self.lengths, default=0)
        self.lengths = [self.lengths[row] for row in rows]
        if not rows:
            self.cache = self.fresh()
            return
        cut = before - max(self.lengths)
        for layer in self.cache.layers:
            if layer.is_initialized:
                index = torch.tensor(rows, device=layer.keys.device)
                layer.keys, layer.values = layer.keys[index, :, cut:], layer.values[index, :, cut:]

    def mask(self, device: torch.device) -> torch.Tensor:
        """What is real, the token to come included, ``[rows, longest + 1]``."""
        longest = max(self.lengths)
        places = torch.arange(longest + 1, device=device)
        return (places >= longest - torch.tensor(self.lengths, device=device)[:, None]).long()

    def _join(self, cache: Any, lengths: Sequence[int]) -> None:
        if not self.lengths:
            self.cache, self.lengths = cache, list(lengths)
            return
        rows, width = len(self.lengths), max(self.lengths)
        longest = max(width, *lengths)
        try:
            self._widen(self.cache, longest - width)
            self._widen(cache, longest - max(lengths))
            for mine, its in zip(self.cache.layers, cache.layers, strict=True):
                if its.is_initialized:
                    mine.keys = torch.cat([mine.keys, its.keys])
                    mine.values = torch.cat([mine.values, its.values])
        except Exception:  # no memory left: the rows that were there stay as they were
            for layer in self.cache.layers:
                if layer.is_initialized:
                    layer.keys, layer.values = layer.keys[:rows, :, -width:], layer.values[:rows, :, -width:]
            raise
        self.lengths += lengths

    def _widen(self, cache: Any, by: int) -> None:
        if not by:
            return
        for layer in cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = pad(layer.keys, (0, 0, by, 0)), pad(layer.values, (0, 0, by, 0))
