"""SIGTERM, SIGHUP and Ctrl-C: in training the first ends the run after the step, with a checkpoint; the second at once.

A run that was started with SIGHUP ignored, as by nohup, continues when its terminal closes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from ftcore.errors import RunError

_BEFORE_EXIT: list[Callable[[int], None]] = []


class InterruptedRunError(RunError):
    """The run was stopped by a signal and can be resumed."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """A context in which the first signal is stored in ``received``, and a second one ends the process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = None
        for number in _heeded():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            _exit(number)  # safe: checkpoints are staged, so an incomplete one is never used
        self.received = signal.Signals(number)


@contextmanager
def ended_at_once(message: Callable[[], str]) -> Iterator[None]:
    """A context that a signal ends at once; a second signal ends the process.

    Args:
        message: the text after ``stopped by ...``.

    Raises:
        InterruptedRunError: instead of the error that the signal became on its way.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            _exit(number)
        received.append(signal.Signals(number))
        raise KeyboardInterrupt  # not an Exception, which libraries may catch

    before = {number: signal.signal(number, note) for number in _heeded()}
    try:
        yield
    except BaseException:
        if not received:
            raise
        raise InterruptedRunError(f"stopped by {shown(received[0])}{message()}", received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def before_exit(call: Callable[[int], None]) -> Iterator[None]:
    """A context in which a second signal calls ``call`` with its number before it ends the process."""
    _BEFORE_EXIT.append(call)
    try:
        yield
    finally:
        _BEFORE_EXIT.remove(call)


def shown(number: int) -> str:
    """The common name of a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _heeded() -> list[signal.Signals]:
    """The handled signals; none outside the main thread, and SIGHUP only if it was not ignored at the start."""
    if threading.current_thread() is not threading.main_thread():
        return []
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]


def _exit(number: int) -> NoReturn:
    for call in _BEFORE_EXIT:
        call(number)
    os._exit(128 + number)
