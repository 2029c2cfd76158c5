"""SIGTERM and Ctrl-C: in training the first ends the run at a whole step, with a checkpoint; the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ftcore.errors import RunError


class InterruptedRunError(RunError):
    """The run was stopped by a signal and can be gone on with."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """While it is entered, SIGTERM and SIGINT are noted in ``received``; a second one ends the process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)  # checkpoints are staged: nothing half written can be taken for one
        self.received = signal.Signals(number)


@contextmanager
def ended_at_once(message: Callable[[], str]) -> Iterator[None]:
    """While it is entered, SIGTERM and Ctrl-C end what is done in it, wherever it is; a second one ends the process.

    Args:
        message: what the user is told behind ``stopped by ...``.

    Raises:
        InterruptedRunError: in the place of whatever the signal was turned into on its way.
    """
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(signal.Signals(number))
        raise KeyboardInterrupt  # no library takes it for an error of its own, as it would an Exception

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    except BaseException:
        if not received:
            raise
        raise InterruptedRunError(f"stopped by {shown(received[0])}{message()}", received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shown(number: int) -> str:
    """A signal as people call it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
