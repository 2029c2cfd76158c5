"""Concurrent execution on the CPU: micro-batches of a step, batches of an evaluation and of a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

from ft_plugins.backends.cpu.split_forward import SequenceSplit
from ft_plugins.backends.cpu.thread_pool import (
    MIN_TOKENS,
    ThreadPool,
    has_dynamic_rope,
    swaps_parameters,
    uses_random_numbers,
)
from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.step.executor import MicroBatchExecutor, SequentialExecutor

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 8
"""Jobs submitted to the pool at a time; bounds how many results are in memory."""

MAX_SHARE = 0.62
"""Largest share of a step's work for one of two workers. Above it all threads together finish sooner: they process
about 1.6 times the tokens per second of one worker. A step of `rm` with a share of 0.72 took 12.0 s (15 CPU s)."""

MAX_SHARE_SPLIT = 0.55
"""The same where the packed row can be split in two instead (`ft_plugins.backends.cpu.split_forward`).
Six steps of `rm` with unequal pairs, alternating: the split took 0.85 of the CPU time and 0.86 of the wall time of all
threads together. At a share of 0.59 the split took 0.85 of the wall time of whole rows."""


class ConcurrentExecutor:
    """Two jobs at a time, on half of torch's threads each.

    Args:
        pool: of the workers.
        concurrent_training: whether the gradients of two micro-batches may be in memory besides those of the step.
        split: computes one row on both workers; None where rows are computed whole.
    """

    workers = NUM_WORKERS
    min_tokens = MIN_TOKENS

    def __init__(self, pool: ThreadPool, concurrent_training: bool, split: SequenceSplit | None) -> None:
        self.pool, self.concurrent_training, self.split = pool, concurrent_training, split

    @property
    def threads(self) -> int:
        """Of a worker."""
        return self.pool.threads_per_worker

    @property
    def max_share(self) -> float:
        """See `MAX_SHARE`."""
        return MAX_SHARE if self.split is None or not self.split.supported else MAX_SHARE_SPLIT

    def map(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """The results of a job for each part, in their order."""
        waiting = iter(parts)
        while some := list(islice(waiting, AHEAD)):
            yield from self.pool.each([partial(job, part) for part in some])

    def run_one(self, job: Callable[[], U]) -> U:
        """The result of one job with a worker's number of threads."""
        return self.pool.run_one(job)


def cpu_executor(context: TrainingContext) -> MicroBatchExecutor:
    """A thread pool if one process runs on several CPU threads and results do not depend on their timing."""
    model, scorer, strategy = context.model, context.scorer, context.strategy
    traits, threads = context.plan.traits, torch.get_num_threads()
    alone = strategy.splits_batches and strategy.device.type == "cpu"
    if not alone or threads < NUM_WORKERS or traits.workers < NUM_WORKERS or not getattr(scorer, "packed", False):
        return SequentialExecutor()
    sees = context.objective.reads_images  # such models store positions on themselves
    alike = not (uses_random_numbers(model) or has_dynamic_rope(model) or swaps_parameters(model))
    if sees or context.noise is not None or not alike:
        return SequentialExecutor()
    sizes = [(tensor.numel(), tensor.requires_grad) for tensor in model.parameters()]
    trained, every = (sum(size for size, counts in sizes if counts >= least) for least in (True, False))
    little = traits.concurrent(threads=threads, trained=trained, parameters=every) > 1
    pool = ThreadPool(threads)
    # autocast's cache of cast weights is shared by all threads
    strategy.share_autocast_cache(False)
    # not with gradient checkpointing: a recomputed layer would receive keys and values a second time
    if isinstance(scorer, CausalLMForward) and not context.plan.gradient_checkpointing:
        scorer.sequence_split = SequenceSplit(pool, scorer, little)
    return ConcurrentExecutor(pool, little, getattr(scorer, "sequence_split", None))
