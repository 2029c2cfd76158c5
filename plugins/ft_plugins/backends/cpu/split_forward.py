"""Forward and backward of one packed row on both workers: the row is split into parts of equal work.

With rows of unequal length, two micro-batches of whole rows would end at different times. All threads together process
fewer tokens per second than two workers (`ft_plugins.backends.cpu.thread_pool`). The parts exchange keys and
values (`ft_plugins.backends.cpu.kv_exchange`).
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

from ft_plugins.backends.cpu.kv_exchange import split_row
from ft_plugins.backends.cpu.thread_pool import MIN_TOKENS, ThreadPool, in_pool
from ftcore.training.batching.collators import Batch
from ftcore.training.cost_model.tokens import CostModel, visible

NEAR = 0.02
"""A row is split between two sequences if that is at most this share of the work away from equal parts."""

Outputs = Callable[[Batch], torch.Tensor]
"""Computes outputs ``[n, ...]`` of a batch. Those of a row are the concatenated outputs of its parts."""


class SequenceSplit:
    """Computes a scorer's outputs of one row in two concurrent parts.

    Args:
        pool: the workers.
        scorer: of a model that takes packed sequences and shared prefixes.
        can_run_concurrent: whether two sets of gradients may be in memory at once.
    """

    def __init__(self, pool: ThreadPool, scorer: Any, can_run_concurrent: bool) -> None:
        self.pool, self.scorer, self.can_run_concurrent = pool, scorer, can_run_concurrent
        self.cost_model = CostModel.of(scorer)
        self.window = getattr(scorer.inner.config.get_text_config(), "sliding_window", None)

    @property
    def supported(self) -> bool:
        """Whether the model's rows can be split."""
        scorer = self.scorer
        return bool(scorer.fused and scorer.shares and scorer.splits_rows and scorer.frozen_layer_cache is None)

    def accepts(self, batch: Batch) -> bool:
        """Whether to split this batch: it must be long enough, and not a part already."""
        count = batch["input_ids"].numel()
        if (
            in_pool()
            or count < 2 * MIN_TOKENS
            or "images" in batch
            or (torch.is_grad_enabled() and not self.can_run_concurrent)
        ):
            return False
        if not self.supported:
            return False
        ordered = bool((batch["positions"].diff() > 0).all())
        return ordered and (self.window is None or self.window > int(visible(batch).max()))

    def split_point(self, batch: Batch) -> int:
        """Tokens of the first part."""
        done = np.concatenate([[0.0], self.cost_model(batch).cumsum()])
        starts = batch["cu_seqlens"].numpy()
        nearest = int(starts[np.abs(done[starts] - done[-1] / 2).argmin()])
        if abs(done[nearest] - done[-1] / 2) <= NEAR * done[-1]:
            return nearest
        return int(np.abs(done - done[-1] / 2).argmin())

    def __call__(self, batch: Batch, outputs: Outputs) -> torch.Tensor:
        """The outputs of the batch."""
        halves = split_row(batch, self.split_point(batch))
        if not torch.is_grad_enabled():
            return torch.cat(list(self.pool.each([partial(_forward, half, outputs, False) for half in halves])))
        trained = [tensor for tensor in self.scorer.model.parameters() if tensor.requires_grad]
        found: torch.Tensor = _SplitForward.apply(self.pool, halves, outputs, *trained)
        return found


class _SplitForward(Function):
    """The concatenated outputs of both parts; the backward passes of both run concurrently too."""

    @staticmethod
    def forward(
        ctx: Any, pool: ThreadPool, halves: tuple[Batch, Batch], outputs: Outputs, *trained: torch.Tensor
    ) -> torch.Tensor:
        made = list(pool.each([partial(_forward, half, outputs, True) for half in halves]))
        ctx.pool, ctx.made, ctx.error_scope, ctx.trained = pool, made, [_error_scope(half) for half in halves], trained
        return torch.cat([one.detach() for one in made])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        gradients = gradient.split([len(one) for one in made])
        jobs = [partial(_back, *both, ctx.trained) for both in zip(ctx.error_scope, made, gradients, strict=True)]
        del made
        first, second = ctx.pool.each(jobs)
        added = [
            one if other is None else other if one is None else one + other
            for one, other in zip(first, second, strict=True)
        ]
        return (None, None, None, *added)


def _error_scope(half: Batch) -> Callable[[], AbstractContextManager[None]]:
    return half["kv_part"].channel.propagate_errors if "kv_part" in half else nullcontext


def _forward(half: Batch, outputs: Outputs, differentiate: bool) -> torch.Tensor:
    with _error_scope(half)(), torch.set_grad_enabled(differentiate):
        return outputs(half)


def _back(
    error_scope: Callable[[], AbstractContextManager[None]],
    made: torch.Tensor,
    gradient: torch.Tensor,
    trained: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor | None, ...]:
    with error_scope():
        return torch.autograd.grad(made, trained, gradient, allow_unused=True)
