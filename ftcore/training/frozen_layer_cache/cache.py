"""Caches the inputs of the first trainable layer: frozen layers compute the same in every epoch.

These hidden states depend on the frozen weights and the sequence's tokens only. They are computed one sequence at a
time, never in a batch: the last bits of a matrix product depend on its number of rows, and cached values would depend
on the batch in which a row first appeared. The result of a step therefore does not depend on what is cached, by which
run, or on an interruption.

Gates replace the ``forward`` of the layers. With cached hidden states, frozen layers return their input unchanged, and
the last frozen layer returns the cached values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, get_ident
from typing import Any

import numpy as np
import torch
from torch import nn

from ftcore.training.batching.collators import Batch
from ftcore.training.frozen_layer_cache.row_store import RowStore
from ftcore.training.model_transforms.patching import replace_forward
from ftcore.training.step.executor import MicroBatchExecutor, SequentialExecutor
from ftcore.utils.hashing import new_digest


@dataclass
class _Call:
    """What the gates do in one call of the decoder.

    Args:
        frozen: whether the frozen layers compute.
        trainable: whether the other layers compute.
        given: what the last frozen layer returns where they do not compute.
        recorded: what it returned where they did.
    """

    frozen: bool = True
    trainable: bool = True
    given: torch.Tensor | None = None
    recorded: torch.Tensor | None = None


class _LayerGate:
    """A layer's ``forward`` that computes, or hands on what it is given."""

    def __init__(self, layer: nn.Module, frozen: bool, last: bool, owner: FrozenLayerCache) -> None:
        self.own: Callable[..., Any] = layer.forward
        self.frozen, self.last, self.owner = frozen, last, owner
        self.returns_tuple = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = self.owner.current
        if now is None or (now.frozen if self.frozen else now.trainable):
            result = self.own(*args, **kwargs)
            if now is not None and self.last:
                self.returns_tuple = isinstance(result, tuple)
                now.recorded = result[0] if self.returns_tuple else result
            return result
        handed = args[0] if args else kwargs["hidden_states"]
        if self.last and now.given is not None:
            handed = now.given
        return (handed,) if self.returns_tuple else handed


@dataclass
class FrozenLayerCache:
    """The layers before the first trainable one, and their cached outputs; see `attach`.

    Args:
        decoder: called as in `ftcore.training.forward.causal_lm`.
        layers: of the decoder, in order.
        first_trainable: number of the first trainable layer.
        inputs: maps a batch to the decoder's keyword arguments.

    Attributes:
        enabled: whether it is in use.
        store: of the cached rows; None computes them each time, in the same way.
        dtype, width: of the first trainable layer's input, and its bytes per token.
        proof: the bytes that the frozen layers compute for a probe.
        executor: computes rows with the same number of threads for every caller.
    """

    decoder: nn.Module
    layers: nn.ModuleList
    first_trainable: int
    inputs: Callable[[Batch], dict[str, Any]]
    enabled: bool = False
    store: RowStore | None = None
    dtype: torch.dtype = torch.float32
    width: int = 0
    proof: bytes = b""
    executor: MicroBatchExecutor = field(default_factory=SequentialExecutor)
    _calls: dict[int, _Call] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=Lock, repr=False)

    def attach(self) -> Callable[[], None]:
        """Puts gates before the layers, so that calls in this object's contexts skip some; returns what removes them.

        Not by classes: layers may be compiled, and the compiler makes new code for another class.
        """
        gates = [
            replace_forward(layer, _LayerGate(layer, number < self.first_trainable, number == self.last_frozen, self))
            for number, layer in enumerate(self.layers)
        ]

        def detach() -> None:
            for undo in reversed(gates):
                undo()

        return detach

    @property
    def last_frozen(self) -> int:
        """Number of the last frozen layer."""
        return self.first_trainable - 1

    @property
    def current(self) -> _Call | None:
        """The current call of this thread."""
        return self._calls.get(get_ident())

    @contextmanager
    def gates(self, now: _Call) -> Iterator[_Call]:
        """Sets the gates for calls of this thread."""
        self._calls[get_ident()] = now
        try:
            yield now
        finally:
            del self._calls[get_ident()]

    def run(self, batch: Batch, trimmed: bool) -> torch.Tensor:
        """The decoder's last hidden states ``[T, H]`` at the batch's positions.

        Args:
            batch: the batch.
            trimmed: whether the last layer, where it computes, returns only these positions
                (`ftcore.training.model_transforms.last_layer_pruning`).
        """
        trimmed = trimmed and self.first_trainable < len(self.layers)
        asked = {"labelled": batch["positions"]} if trimmed else {}
        if self.enabled:
            found = self.run_trainable(batch, self.frozen_outputs(batch), **asked)
        else:
            found = self.decoder(**self.inputs(batch), **asked).last_hidden_state
        return found[0] if trimmed else found[0, batch["positions"]]

    def run_trainable(self, batch: Batch, given: torch.Tensor, **asked: Any) -> torch.Tensor:
        """The decoder's last hidden states ``[1, N, H]``, given the first trainable layer's input of the same shape."""
        with self.gates(_Call(frozen=False, given=given)):
            return self.decoder(**self.inputs(batch), **asked).last_hidden_state

    def frozen_outputs(self, batch: Batch) -> torch.Tensor:
        """The first trainable layer's input ``[1, N, H]``; each sequence comes from the cache or is computed alone."""
        ids, starts = batch["input_ids"][0], batch["cu_seqlens"].tolist()
        before = batch.get("prefixes") or [()] * (len(starts) - 1)
        parts = []
        for begin, end, ranges in zip(starts[:-1], starts[1:], before, strict=True):
            whole = torch.cat([*(ids[first:last] for first, last in ranges), ids[begin:end]])
            parts.append(self._row(whole)[begin - end :])
        return torch.cat(parts)[None]

    def _row(self, ids: torch.Tensor) -> torch.Tensor:
        """The same of one sequence of L tokens, ``[L, H]``."""
        if self.store is None:
            return self.alone(ids)
        how, size = str(_casting(ids.device.type)).encode(), len(ids) * self.width
        key = new_digest(ids.cpu().numpy().astype(np.int32).tobytes(), how).digest()[:16]
        with self._lock:
            found = self.store.get(key, size)
            if found is None:
                self.store.refresh()
                found = self.store.get(key, size)
        if found is not None:
            # copied: the memory map is read-only, and torch has no read-only tensors
            return torch.from_numpy(found.copy()).view(self.dtype).view(len(ids), -1).to(ids.device)
        hidden = self.alone(ids)
        with self._lock:
            if self.store.get(key, size) is None:
                self.store.put(key, hidden.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return hidden

    def alone(self, ids: torch.Tensor) -> torch.Tensor:
        """Computes the first trainable layer's input of one sequence of L tokens, ``[L, H]``; no gradients."""
        return self.executor.run_one(partial(self._alone, ids))

    def _alone(self, ids: torch.Tensor) -> torch.Tensor:
        length, device = len(ids), ids.device
        batch = {
            "input_ids": ids[None],
            "position_ids": torch.arange(length, device=device)[None],
            "cu_seqlens": torch.tensor([0, length], dtype=torch.int32, device=device),
            "max_len": length,
        }
        with torch.no_grad(), self.gates(_Call(trainable=False)) as now:
            self.decoder(**self.inputs(batch))
        assert now.recorded is not None
        return now.recorded[0]


def _casting(device: str) -> torch.dtype | None:
    """Autocast's dtype; None where autocast is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
