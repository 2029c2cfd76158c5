"""A left-padded cache of keys and values for several answers; rows join and leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def supports_batching(model: Any) -> bool:
    """Whether the model caches only full keys and values, so that rows can be added and removed."""
    layers = _empty(model.config).layers
    return not getattr(model, "_is_stateful", False) and all(type(layer) is DynamicLayer for layer in layers)


def _empty(config: Any) -> Any:
    make: Any = DynamicCache
    return make(config=config)


class BatchKVCache:
    """A cache of rows; shorter rows are padded on the left.

    Args:
        config: configuration of the model.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.cache, self.lengths = self.fresh(), list[int]()

    def fresh(self) -> Any:
        """An empty cache for a new prompt."""
        return _empty(self._config)

    def add(self, cache: Any, length: int, copies: int) -> None:
        """Adds the one-row cache of a prompt, ``copies`` times."""
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        self._join(cache, [length] * copies)

    def join(self, other: BatchKVCache) -> None:
        """Adds the rows of another cache, which must not be used afterwards."""
        if other.lengths:
            self._join(other.cache, other.lengths)

    def part(self, rows: Sequence[int]) -> BatchKVCache:
        """A new cache with some of these rows."""
        part = BatchKVCache(self._config)
        part.lengths = [self.lengths[row] for row in rows]
        cut = max(self.lengths) - max(part.lengths)
        for number, layer in enumerate(self.cache.layers):
            if layer.is_initialized:
                index = torch.tensor(rows, device=layer.keys.device)
                part.cache.update(layer.keys[index, :, cut:], layer.values[index, :, cut:], number)
        return part

    def undo_pass(self) -> None:
        """Removes what a failed forward pass wrote into some layers."""
        longest = max(self.lengths)
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:, :, :longest], layer.values[:, :, :longest]

    def grow(self) -> None:
        """Counts the token that a forward pass added to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps only these rows, and removes padding that they do not need."""
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
        """The attention mask, including the next token, ``[rows, longest + 1]``."""
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
        except Exception:  # out of memory: existing rows stay unchanged
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
