"""One row of sequences computed by a whole crew: cut in two where the work is even
(`ftcore.training.parallel.cpu_threads.kv_exchange`).

Where rows of a batch are of unlike length, two passes of whole rows would end at different times, and all threads
together make fewer tokens a second than two halves beside each other (`ftcore.training.parallel.cpu_threads.pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ftcore.training.batching.collators import Batch
from ftcore.training.cost_model.tokens import CostModel, visible
from ftcore.training.parallel.cpu_threads.kv_exchange import split_row
from ftcore.training.parallel.cpu_threads.pool import FEWEST, ThreadPool, in_pool

NEAR = 0.02
"""How far from the middle a row is cut between two sequences rather than within one, as a share of the work."""

Outputs = Callable[[Batch], torch.Tensor]
"""What a scorer makes of a batch, ``[n, ...]``: of two parts of a row, that of the row is one after the other."""


class SequenceSplit:
    """Computes a scorer's outputs of one row in two halves side by side.

    Args:
        crew: who does.
        scorer: of a model whose sequences go end to end, and one from another's beginning, with plain attention.
        adds_up: whether two sets of gradients may be in memory at once.
    """

    def __init__(self, crew: ThreadPool, scorer: Any, adds_up: bool) -> None:
        self.crew, self.scorer, self.adds_up = crew, scorer, adds_up
        self.work = CostModel.of(scorer)
        self.window = getattr(scorer.inner.config.get_text_config(), "sliding_window", None)

    @property
    def serves(self) -> bool:
        """Whether the model's rows can be cut."""
        scorer = self.scorer
        return bool(scorer.fused and scorer.shares and scorer.plain and scorer.prefix is None)

    def takes(self, batch: Batch) -> bool:
        """Whether a batch is one that is cut: long enough, and not a part of one already."""
        count = batch["input_ids"].numel()
        if in_pool() or count < 2 * FEWEST or "images" in batch or (torch.is_grad_enabled() and not self.adds_up):
            return False
        if not self.serves:
            return False
        ordered = bool((batch["positions"].diff() > 0).all())
        return ordered and (self.window is None or self.window > int(visible(batch).max()))

    def middle(self, batch: Batch) -> int:
        """Tokens of the first half."""
        done = np.concatenate([[0.0], self.work(batch).cumsum()])
        starts = batch["cu_seqlens"].numpy()
        nearest = int(starts[np.abs(done[starts] - done[-1] / 2).argmin()])
        if abs(done[nearest] - done[-1] / 2) <= NEAR * done[-1]:
            return nearest
        return int(np.abs(done - done[-1] / 2).argmin())

    def __call__(self, batch: Batch, outputs: Outputs) -> torch.Tensor:
        """What `outputs` makes of the batch."""
        halves = split_row(batch, self.middle(batch))
        if not torch.is_grad_enabled():
            return torch.cat(list(self.crew.each([partial(_forward, half, outputs, False) for half in halves])))
        trained = [tensor for tensor in self.scorer.model.parameters() if tensor.requires_grad]
        found: torch.Tensor = _Halves.apply(self.crew, halves, outputs, *trained)
        return found


class _Halves(Function):
    """Both halves' outputs, one after the other; in the backward pass both go back side by side."""

    @staticmethod
    def forward(
        ctx: Any, crew: ThreadPool, halves: tuple[Batch, Batch], outputs: Outputs, *trained: torch.Tensor
    ) -> torch.Tensor:
        made = list(crew.each([partial(_forward, half, outputs, True) for half in halves]))
        ctx.crew, ctx.made, ctx.holding, ctx.trained = crew, made, [_holding(half) for half in halves], trained
        return torch.cat([one.detach() for one in made])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        gradients = gradient.split([len(one) for one in made])
        jobs = [partial(_back, *both, ctx.trained) for both in zip(ctx.holding, made, gradients, strict=True)]
        del made
        first, second = ctx.crew.each(jobs)
        added = [
            one if other is None else other if one is None else one + other
            for one, other in zip(first, second, strict=True)
        ]
        return (None, None, None, *added)


def _holding(half: Batch) -> Callable[[], AbstractContextManager[None]]:
    return half["side"].lending.held if "side" in half else nullcontext


def _forward(half: Batch, outputs: Outputs, differentiate: bool) -> torch.Tensor:
    with _holding(half)(), torch.set_grad_enabled(differentiate):
        return outputs(half)


def _back(
    holding: Callable[[], AbstractContextManager[None]],
    made: torch.Tensor,
    gradient: torch.Tensor,
    trained: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor | None, ...]:
    with holding():
        return torch.autograd.grad(made, trained, gradient, allow_unused=True)
