"""A pool of two CPU workers, each with half of torch's threads.

Threads that share a matrix product wait for each other after each product, and waiting costs CPU time. Two
micro-batches on one worker each synchronise once per step. CPU seconds of sft lora of smollm2-135m in float32, steps of
1,657 and 1,931 tokens, on two shared cores of a Zen 3: both threads per product 19.2 to 23.1, one thread 15.8 to 17.3,
two concurrent steps 17.0 and 18.8 each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import nn

from ftcore.resources.hardware import NUM_WORKERS

T = TypeVar("T")

MIN_TOKENS = 128
"""Fewest tokens of a worker's micro-batch. Smaller products are slow: with 64 rows they reach 0.8 of the operations per
second, with 32 rows 0.7."""
_RANDOM = ("drop", "jitter")
"""In the names of a configuration's numbers that make the forward pass random."""

_here = threading.local()


class ThreadPool:
    """Runs jobs concurrently, one per worker, in the caller's gradient and autocast modes.

    Args:
        threads: of all workers together.

    Attributes:
        threads_per_worker: torch's threads of a worker.
    """

    def __init__(self, threads: int) -> None:
        self.threads_per_worker = max(1, threads // NUM_WORKERS)
        self._pool = ThreadPoolExecutor(NUM_WORKERS, "ft-pool", _join, (self.threads_per_worker,))

    def each(self, jobs: Sequence[Callable[[], T]]) -> Iterator[T]:
        """The results of the jobs, in their order.

        Raises:
            Exception: that of the first failed job in their order, after all running jobs have ended.
        """
        mode = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        begun: list[Future[T]] = [self._pool.submit(_in_mode, mode, job) for job in jobs]
        try:
            while begun:
                yield begun.pop(0).result()
        finally:
            for one in begun:
                one.cancel()
            for one in begun:
                if not one.cancelled():
                    one.exception()

    def run_one(self, job: Callable[[], T]) -> T:
        """The result of one job with a worker's number of threads, in a worker or, if called in one, in this thread."""
        return job() if in_pool() else next(self.each([job]))


def in_pool() -> bool:
    """Whether this is a worker's thread."""
    return getattr(_here, "worker", False)


def _join(threads: int) -> None:
    torch.set_num_threads(threads)  # of this thread
    _here.worker = True


def _in_mode(mode: tuple[bool, bool, torch.dtype], job: Callable[[], T]) -> T:
    gradients, casting, dtype = mode
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=dtype, enabled=casting, cache_enabled=False):
        return job()


def uses_random_numbers(model: Any) -> bool:
    """Whether the training forward may draw random numbers, whose order would depend on the threads' timing."""
    described = model.config.get_text_config().to_dict()
    noisy = any(
        value and isinstance(value, int | float) and any(sign in name for sign in _RANDOM)
        for name, value in described.items()
    )
    return noisy or any(
        getattr(module, "p", 0) for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    )


def swaps_parameters(model: Any) -> bool:
    """Whether a module replaces a parameter during a call, which all threads would see.

    peft's adapters of experts do (``ParamWrapper``).
    """
    return any(hasattr(module, "parameter_name") for module in model.modules())


def has_dynamic_rope(model: Any) -> bool:
    """Whether position embeddings depend on the longest sequence so far, which the model stores on itself."""
    described = model.config.get_text_config().to_dict()
    kinds = str(described.get("rope_parameters")) + str(described.get("rope_scaling"))
    return any(kind in kinds for kind in ("dynamic", "longrope"))
