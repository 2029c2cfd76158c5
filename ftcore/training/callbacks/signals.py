"""SIGTERM, SIGHUP, Ctrl-C: in training the first ends the run at a whole step, with a checkpoint; the second at once.

A run that was started with SIGHUP ignored, as by nohup, goes on when its terminal is gone.
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
    """The run was stopped by a signal and can be gone on with."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """While it is entered, the first signal is noted in ``received``; a second one ends the process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _heeded():
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            _exit(number)  # checkpoints are staged: nothing half written can be taken for one
        self.received = signal.Signals(number)


@contextmanager
def ended_at_once(message: Callable[[], str]) -> Iterator[None]:
    """While it is entered, a signal ends what is done in it, wherever it is; a second one ends the process.

    Args:
        message: what the user is told behind ``stopped by ...``.

    Raises:
        InterruptedRunError: in the place of whatever the signal was turned into on its way.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            _exit(number)
        received.append(signal.Signals(number))
        raise KeyboardInterrupt  # no library takes it for an error of its own, as it would an Exception

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
    """While it is entered, a second signal calls this with its number before it ends the process."""
    _BEFORE_EXIT.append(call)
    try:
        yield
    finally:
        _BEFORE_EXIT.remove(call)


def shown(number: int) -> str:
    """A signal as people call it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _heeded() -> list[signal.Signals]:
    """Signals that are handled: in the main thread, which alone may; SIGHUP unless it was ignored from the start."""
    if threading.current_thread() is not threading.main_thread():
        return []
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hang_up]


def _exit(number: int) -> NoReturn:
    for call in _BEFORE_EXIT:
        call(number)
    os._exit(128 + number)
