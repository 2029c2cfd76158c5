"""Work on batches in several processes, where there is much of it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import Any, TypeVar

from ftcore.errors import FtError, RunError

A = TypeVar("A", bound=Sequence[Any])
B = TypeVar("B")

ALONE = 3000
"""So many items or fewer one process does by itself: starting others costs as much as some hundred of them."""
_PR_SET_PDEATHSIG = 1

_work: Callable[[Any], Any] | None = None
"""What the forks of this process do."""


def processes(wanted: int | None) -> int:
    """How many processes to use: as many as wanted, else one per core that this process may use."""
    return wanted or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def in_order(work: Callable[[A], B], batches: Iterable[A], count: int) -> Iterator[B]:
    """The work's result for each batch, in order.

    Processes are forked: they have everything that this one has loaded. Elsewhere than on Linux, where libraries do
    not survive a fork, this process does it all.

    Args:
        work: its results are sent between processes.
        batches: read here, a few ahead; what is wrong with one is raised after the results of those before it.
        count: of processes; 1 for this one alone.

    Raises:
        RunError: a process was killed.
    """
    many, batches = _ahead(iter(batches)) if count > 1 and sys.platform == "linux" else (False, iter(batches))
    if many:
        yield work(next(batches))  # what it loads and keeps, the forks have from the start
        yield from _forked(work, batches, count)
    else:
        yield from map(work, batches)


def _ahead(batches: Iterator[A]) -> tuple[bool, Iterator[A]]:
    """Whether there are more items than `ALONE`, and all batches from the first."""
    ahead: list[A] = []
    failures: list[FtError] = []
    while sum(map(len, ahead)) <= ALONE and (batch := _next(batches, failures)) is not None:
        ahead.append(batch)
    return sum(map(len, ahead)) > ALONE, chain(ahead, batches, _failing(failures))


def _failing(failures: list[FtError]) -> Iterator[Any]:
    """No batch, but what reading the next one raised."""
    for failure in failures:
        raise failure
    yield from ()


def _forked(work: Callable[[A], B], batches: Iterator[A], count: int) -> Iterator[B]:
    global _work
    _work = work
    pending: deque[Future[B]] = deque()
    failures: list[FtError] = []
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=begin_fork)
    try:
        while (batch := _next(batches, failures)) is not None:
            with warnings.catch_warnings():
                # From 3.12 on Python warns where other threads run. Those here are pools that wait, and the forks
                # use none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                pending.append(pool.submit(_call, batch))
            if len(pending) > 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        for failure in failures:
            raise failure
    except BrokenProcessPool as error:
        hint = "was there too little memory? set preprocessing_num_workers: 1"
        raise RunError(f"a process that prepares data was killed; {hint}") from error
    finally:
        pool.shutdown(cancel_futures=True)
        _work = None


def _next(batches: Iterator[A], failures: list[FtError]) -> A | None:
    """The next batch, if any. What is wrong with it waits until those before it are done."""
    try:
        return next(batches, None)
    except FtError as error:
        failures.append(error)
        return None


def begin_fork() -> None:
    """In a new fork: Ctrl-C is the parent's to handle, and it does not outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()  # what was loaded before is not looked through again and again, nor copied for that
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool did not survive the fork


def _call(batch: Any) -> Any:
    assert _work is not None
    return _work(batch)
