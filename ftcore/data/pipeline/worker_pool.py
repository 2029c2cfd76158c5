"""Processes batches in several worker processes if there are many items."""

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
"""Up to this many items run in one process: starting workers costs as much as a few hundred items."""
_PR_SET_PDEATHSIG = 1

_work: Callable[[Any], Any] | None = None
"""The function that worker processes run."""


def processes(wanted: int | None) -> int:
    """The number of processes: ``wanted``, else one per available core."""
    return wanted or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def in_order(work: Callable[[A], B], batches: Iterable[A], count: int) -> Iterator[B]:
    """The results of ``work`` for each batch, in order.

    Workers are forked and share everything that this process has loaded. On other systems than Linux, libraries do not
    survive a fork, and this process does all the work.

    Args:
        work: the function; its results must be picklable.
        batches: read in this process, a few ahead. An error is raised after the results of earlier batches.
        count: number of processes; 1 for this process only.

    Raises:
        RunError: a worker process was killed.
    """
    many, batches = _ahead(iter(batches)) if count > 1 and sys.platform == "linux" else (False, iter(batches))
    if many:
        yield work(next(batches))  # the workers inherit what the first call loads
        yield from _forked(work, batches, count)
    else:
        yield from map(work, batches)


def _ahead(batches: Iterator[A]) -> tuple[bool, Iterator[A]]:
    """Whether there are more items than `ALONE`, and an iterator over all batches."""
    ahead: list[A] = []
    failures: list[FtError] = []
    while sum(map(len, ahead)) <= ALONE and (batch := _next(batches, failures)) is not None:
        ahead.append(batch)
    return sum(map(len, ahead)) > ALONE, chain(ahead, batches, _failing(failures))


def _failing(failures: list[FtError]) -> Iterator[Any]:
    """Raises the error that reading the next batch raised."""
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
                # Python 3.12 warns about a fork while other threads run. The threads here are idle pools, which the
                # workers do not use.
                warnings.simplefilter("ignore", DeprecationWarning)
                pending.append(pool.submit(_call, batch))
            if len(pending) > 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        for failure in failures:
            raise failure
    except BrokenProcessPool as error:
        hint = "if memory ran out, set preprocessing_num_workers: 1"
        raise RunError(f"a data worker process was killed; {hint}") from error
    finally:
        pool.shutdown(cancel_futures=True)
        _work = None


def _next(batches: Iterator[A], failures: list[FtError]) -> A | None:
    """The next batch, if any. An error is stored until the earlier batches are done."""
    try:
        return next(batches, None)
    except FtError as error:
        failures.append(error)
        return None


def begin_fork() -> None:
    """Initialises a worker: the parent handles Ctrl-C, and the worker ends with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.freeze()  # garbage collection skips inherited objects, which would otherwise be copied
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool did not survive the fork


def _call(batch: Any) -> Any:
    assert _work is not None
    return _work(batch)
