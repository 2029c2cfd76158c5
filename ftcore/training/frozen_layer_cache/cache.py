"""What lies under the lowest trained layer computes the same in every epoch: kept row by row, and not run again.

A sequence's hidden states at that border depend on the frozen weights and on its tokens alone. They are computed by
themselves, one sequence at a time, and never as a part of a batch: a matrix product's last bits depend on how many
rows it has, and what is kept would depend on the batch in which a row came first. So what a step computes does not
depend on what is kept, by whom, or on whether a run was stopped in between.

The gates stand before the layers' own ``forward``. With a batch of which everything is known the layers below the
border hand on what they get, and the last of them hands on what was kept.
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
from ftcore.training.parallel.cpu_threads.pool import ThreadPool
from ftcore.utils.hashing import new_digest


@dataclass
class _Pass:
    """What the gates do in a pass through the decoder.

    Args:
        below: whether the layers under the border compute.
        above: whether the others do.
        given: what the last layer under the border hands on where they do not.
    """

    below: bool = True
    above: bool = True
    given: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class _LayerGate:
    """In the place of a layer's ``forward``."""

    def __init__(self, layer: nn.Module, below: bool, last: bool, owner: FrozenLayerCache) -> None:
        self.own: Callable[..., Any] = layer.forward
        self.below, self.last, self.owner = below, last, owner
        self.pairs = False
        layer.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = self.owner.now
        if now is None or (now.below if self.below else now.above):
            result = self.own(*args, **kwargs)
            if now is not None and self.last:
                self.pairs = isinstance(result, tuple)
                now.seen = result[0] if self.pairs else result
            return result
        handed = args[0] if args else kwargs["hidden_states"]
        if self.last and now.given is not None:
            handed = now.given
        return (handed,) if self.pairs else handed


@dataclass
class FrozenLayerCache:
    """The layers under the lowest trained one, and what is kept of them.

    Args:
        decoder: the stack, called as `ftcore.training.forward.causal_lm` calls it.
        layers: of the decoder, from the bottom up.
        border: number of the lowest layer that is not under the border.
        inputs: a batch as the decoder's keyword arguments.

    Attributes:
        on: whether it is in use.
        store: where rows are kept; None computes them each time, in the same way.
        dtype, width: of what passes the border, and its bytes per token.
        proof: bytes that it made of a probe.
        crew: who computes rows, so that they are the same whoever asks for them; None for the caller.
    """

    decoder: nn.Module
    layers: nn.ModuleList
    border: int
    inputs: Callable[[Batch], dict[str, Any]]
    on: bool = False
    store: RowStore | None = None
    dtype: torch.dtype = torch.float32
    width: int = 0
    proof: bytes = b""
    crew: ThreadPool | None = None
    _passes: dict[int, _Pass] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        for number, layer in enumerate(self.layers):
            _LayerGate(layer, number < self.border, number == self.border - 1, self)

    @property
    def now(self) -> _Pass | None:
        """The pass of this thread."""
        return self._passes.get(get_ident())

    @contextmanager
    def passing(self, now: _Pass) -> Iterator[_Pass]:
        """The gates set, for this thread."""
        self._passes[get_ident()] = now
        try:
            yield now
        finally:
            del self._passes[get_ident()]

    def run(self, batch: Batch, trimmed: bool) -> torch.Tensor:
        """The decoder's last hidden states ``[T, H]`` at the batch's positions.

        Args:
            batch: what is computed.
            trimmed: whether the last layer gives no more than these where it computes
            (`ftcore.training.model_transforms.last_layer_pruning`).
        """
        trimmed = trimmed and self.border < len(self.layers)
        asked = {"labelled": batch["positions"]} if trimmed else {}
        if self.on:
            found = self.halved(batch, self.below(batch), **asked)
        else:
            found = self.decoder(**self.inputs(batch), **asked).last_hidden_state
        return found[0] if trimmed else found[0, batch["positions"]]

    def halved(self, batch: Batch, given: torch.Tensor, **asked: Any) -> torch.Tensor:
        """The decoder's last hidden states ``[1, N, H]`` from what passes the border, of the same shape."""
        with self.passing(_Pass(below=False, given=given)):
            return self.decoder(**self.inputs(batch), **asked).last_hidden_state

    def watched(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything computed as without this: what passes the border, and the last hidden states, ``[1, N, H]``."""
        with self.passing(_Pass()) as now:
            last = self.decoder(**self.inputs(batch)).last_hidden_state
        assert now.seen is not None
        return now.seen, last

    def below(self, batch: Batch) -> torch.Tensor:
        """What passes the border, ``[1, N, H]``, each sequence computed by itself or taken from where it is kept."""
        ids, starts = batch["input_ids"][0], batch["cu_seqlens"].tolist()
        before = batch.get("prefixes") or [()] * (len(starts) - 1)
        parts = []
        for begin, end, ranges in zip(starts[:-1], starts[1:], before, strict=True):
            whole = torch.cat([*(ids[first:last] for first, last in ranges), ids[begin:end]])
            parts.append(self._row(whole)[begin - end :])
        return torch.cat(parts)[None]

    def _row(self, ids: torch.Tensor) -> torch.Tensor:
        """Of one sequence of L tokens, ``[L, H]``."""
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
            # copied: torch has no tensors that cannot be written to
            return torch.from_numpy(found.copy()).view(self.dtype).view(len(ids), -1).to(ids.device)
        hidden = self.alone(ids)
        with self._lock:
            if self.store.get(key, size) is None:
                self.store.put(key, hidden.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return hidden

    def alone(self, ids: torch.Tensor) -> torch.Tensor:
        """Computes one sequence of L tokens up to the border, ``[L, H]``; no gradients."""
        return self._alone(ids) if self.crew is None else self.crew.alone(partial(self._alone, ids))

    def _alone(self, ids: torch.Tensor) -> torch.Tensor:
        length, device = len(ids), ids.device
        batch = {
            "input_ids": ids[None],
            "position_ids": torch.arange(length, device=device)[None],
            "cu_seqlens": torch.tensor([0, length], dtype=torch.int32, device=device),
            "max_len": length,
        }
        with torch.no_grad(), self.passing(_Pass(above=False)) as now:
            self.decoder(**self.inputs(batch))
        assert now.seen is not None
        return now.seen[0]


def _casting(device: str) -> torch.dtype | None:
    """The dtype that autocast computes in, where it does."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
