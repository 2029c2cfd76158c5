"""Concurrent execution on the CPU: micro-batches of a step, batches of an evaluation and of a reference."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar

import torch
from accelerate.utils import AutocastKwargs

from ftcore.api.plan import Plan
from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.batching.collators import Batch, ImageCollator
from ftcore.training.cost_model.tokens import CostModel
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.parallel.cpu_threads.pool import (
    ThreadPool,
    has_dynamic_rope,
    in_pool,
    swaps_parameters,
    uses_random_numbers,
)
from ftcore.training.parallel.cpu_threads.split_forward import SequenceSplit
from ftcore.training.step.metrics import MetricAccumulator

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 8
"""Jobs submitted to the pool at a time; bounds how many results are in memory."""


class MicroBatchExecutor:
    """The part of `FtTrainer` that uses the thread pool.

    Attributes:
        pool: the CPU thread pool; None where work is sequential.
        can_run_concurrent: whether the gradients of two micro-batches may be in memory besides those of the step.
    """

    loss_is_additive = True
    """Whether the loss of a micro-batch is the sum of its parts' losses."""
    plan: Plan
    model: Any
    args: Any
    accelerator: Any
    optimizer: Any
    scorer: Any
    noise: Any
    compute_loss: Any
    _prepare_inputs: Any
    _measuring: MetricAccumulator
    pool: ThreadPool | None = None
    can_run_concurrent = False

    def start_pool(self) -> None:
        """Creates the pool if one process runs on several CPU threads and results do not depend on their timing."""
        self._local = threading.local()
        trainer: Any = self
        alone = self.args.world_size == 1 and self.args.device.type == "cpu" and not trainer.is_deepspeed_enabled
        threads, whole = torch.get_num_threads(), self.plan.training.tokens_per_pass is False
        if not alone or threads < NUM_WORKERS or whole or not getattr(self.scorer, "packed", False):
            return
        sees = isinstance(trainer.data_collator.collate, ImageCollator)  # such models store positions on themselves
        alike = not (uses_random_numbers(self.model) or has_dynamic_rope(self.model) or swaps_parameters(self.model))
        if not sees and self.noise is None and alike:
            self.pool, self.can_run_concurrent = ThreadPool(threads), _trains_little(self.model)
            # autocast's cache of cast weights is shared by all threads
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
            # not with gradient checkpointing: a recomputed layer would receive keys and values a second time
            if isinstance(self.scorer, CausalLMForward) and not self.plan.gradient_checkpointing:
                self.scorer.sequence_split = SequenceSplit(self.pool, self.scorer, self.can_run_concurrent)

    @property
    def runs_concurrently(self) -> bool:
        """Whether the micro-batches of a step run two at a time."""
        return self.pool is not None and self.loss_is_additive and self.can_run_concurrent

    @cached_property
    def cost_model(self) -> CostModel | None:
        """The cost of tokens; None for a plugin's own scorer."""
        return CostModel.of(self.scorer) if isinstance(self.scorer, CausalLMForward) else None

    def run_concurrently(self, model: Any, parts: Sequence[Batch], count: Any) -> list[torch.Tensor]:
        """The losses of these micro-batches. Gradients are added in the order of the list, so sums are reproducible."""
        model.train()
        if callable(switch := getattr(self.optimizer, "train", None)):
            switch()
        trained = [tensor for tensor in model.parameters() if tensor.requires_grad]

        def one(part: Batch) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
            loss = self.compute_loss(model, self._prepare_inputs(part), num_items_in_batch=count)
            return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)

        losses = []
        for loss, gradients in self.each(one, parts):
            for tensor, gradient in zip(trained, gradients, strict=True):
                if gradient is not None and tensor.grad is None:
                    # in the weight's memory layout, as backward() does: fused optimizers read both in one order
                    tensor.grad = torch.empty_like(tensor).copy_(gradient)
                elif gradient is not None:
                    tensor.grad.add_(gradient)
            losses.append(loss)
        return losses

    def each(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """The results of a job for each part, in order; concurrently where there is a pool.

        Metrics that the job logs (`log_metric`) are added in the order of the parts.
        """
        if self.pool is None:
            yield from map(job, parts)
            return

        def noting(part: T) -> tuple[U, MetricAccumulator]:
            self._local.meters = MetricAccumulator()
            return job(part), self._local.meters

        waiting = iter(parts)
        while some := list(islice(waiting, AHEAD)):
            for made, meters in self.pool.each([partial(noting, part) for part in some]):
                self._measuring.take(meters)
                yield made

    def log_metric(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Adds values ``[n]`` of this batch to a metric that is logged as a mean; ``weights`` are ``[n]``, or None."""
        meters = self._local.meters if in_pool() else self._measuring
        meters.add(name, values, weights)

    def note(self, name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """The name of `log_metric` before version 0.2; it goes in 0.3."""
        warnings.warn("FtTrainer.note is deprecated: use FtTrainer.log_metric", DeprecationWarning, stacklevel=2)
        self.log_metric(name, values, weights)


def _trains_little(model: Any) -> bool:
    """Whether at most a quarter of the parameters is trained, so that further gradients take little memory."""
    sizes = [(tensor.numel(), tensor.requires_grad) for tensor in model.parameters()]
    return 4 * sum(size for size, trained in sizes if trained) <= sum(size for size, _ in sizes)
