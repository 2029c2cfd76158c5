"""Two halves of the work side by side, each on half of a CPU's threads.

Threads that share each product wait for each other after every one of them, and the sooner one is done the more CPU
time it spends on waiting. Two passes of half the rows each wait for each other once a step. Measured on two cores of a
Zen 3 that other machines share, sft lora of smollm2-135m in float32, CPU seconds of a step of 1,657 and one of 1,931
tokens: two threads together 19.2 to 23.1, one alone 15.8 to 17.3, two steps side by side 17.0 and 18.8 each.
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

FEWEST = 128
"""Tokens from which a half is worth it: a product of 64 rows makes 0.8 of the operations a second, of 32 rows 0.7."""
_RANDOM = ("drop", "jitter")
"""In the names of a configuration's numbers, and of modules, by which something is drawn in each pass."""

_here = threading.local()


class ThreadPool:
    """Does jobs side by side, each by one member, in the caller's modes of gradients and autocast.

    Args:
        threads: of all members together.

    Attributes:
        share: threads of a member.
    """

    def __init__(self, threads: int) -> None:
        self.share = max(1, threads // NUM_WORKERS)
        self._pool = ThreadPoolExecutor(NUM_WORKERS, "ft-crew", _join, (self.share,))

    def each(self, jobs: Sequence[Callable[[], T]]) -> Iterator[T]:
        """The jobs' results in their order, as they come.

        Raises:
            Exception: of the first job, in their order, that ended with one; when none is under way any more.
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

    def alone(self, job: Callable[[], T]) -> T:
        """The result of one job, done as a member does it, by whoever calls this."""
        return job() if in_pool() else next(self.each([job]))


def in_pool() -> bool:
    """Whether this is a member's thread."""
    return getattr(_here, "member", False)


def _join(threads: int) -> None:
    torch.set_num_threads(threads)  # of this thread
    _here.member = True


def _in_mode(mode: tuple[bool, bool, torch.dtype], job: Callable[[], T]) -> T:
    gradients, casting, dtype = mode
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=dtype, enabled=casting, cache_enabled=False):
        return job()


def draws(model: Any) -> bool:
    """Whether the model may take random numbers while it trains: who takes which would depend on who is first."""
    described = model.config.get_text_config().to_dict()
    noisy = any(
        value and isinstance(value, int | float) and any(sign in name for sign in _RANDOM)
        for name, value in described.items()
    )
    return noisy or any(
        getattr(module, "p", 0) for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    )


def swaps(model: Any) -> bool:
    """Whether a module puts another tensor in a parameter's place for the length of a call, for all threads.

    peft's adapters of experts do (``ParamWrapper``).
    """
    return any(hasattr(module, "parameter_name") for module in model.modules())


def rescales(model: Any) -> bool:
    """Whether the model's positions depend on the longest sequence it saw, which it notes on itself."""
    described = model.config.get_text_config().to_dict()
    kinds = str(described.get("rope_parameters")) + str(described.get("rope_scaling"))
    return any(kind in kinds for kind in ("dynamic", "longrope"))
