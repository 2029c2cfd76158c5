"""SIGTERM and Ctrl-C: the first ends the run at a whole step, with a checkpoint; the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
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
