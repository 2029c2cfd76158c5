"""The worker thread that runs the models, and the queue of requests."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ftcore.api.inference_types import Chunk, Prompt
from ftcore.errors import UsageError
from ftcore.inference.sessions import Refused, Session

log = logging.getLogger("uvicorn.error")
T = TypeVar("T")


class Busy(Exception):
    """The queue is full."""


class EngineFailed(Exception):
    """The engine failed; not an error of the user."""


@dataclass(eq=False)
class Job:
    """The prompts of one request.

    Args:
        model: name of the model.
        prompts: one per choice.
        logprobs: see `Session.add`.

    Attributes:
        events: queue for the event loop: an empty list when the prompts are accepted, then chunks whose index is the
            choice; or the error that ends the job.
        keys: number in the session -> choice.
        open: whether the job occupies places in the queue.
    """

    model: str
    prompts: Sequence[Prompt]
    logprobs: int | None = None
    events: asyncio.Queue[list[Chunk] | Exception] = field(default_factory=asyncio.Queue)
    keys: dict[int, int] = field(default_factory=dict)
    open: bool = False


class _Lane:
    """One served model: its session and the jobs in it."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self.open_session, self.session = open_session, open_session()
        self.jobs: dict[int, Job] = {}


class Worker:
    """Runs all models in one thread; queues carry requests and answers.

    Args:
        sessions: name of a served model -> opens its session.
        room: limit of running and waiting answers.
    """

    def __init__(self, sessions: Mapping[str, Callable[[], Session]], room: int) -> None:
        self.room, self.taken = room, 0
        self._lanes = {name: _Lane(open_session) for name, open_session in sessions.items()}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ft-worker", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # the event loop's side

    def start(self) -> None:
        """Starts the thread; called in the event loop of the requests."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Stops the thread after the current step."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def reserve(self, job: Job) -> None:
        """Reserves one place per prompt, until the job has ended or is dropped.

        Raises:
            Busy: too few places are free.
        """
        self._take(len(job.prompts))
        job.open = True

    def submit(self, job: Job) -> None:
        """Starts a job with reserved places."""
        self._commands.put(lambda: self._add(job))

    def drop(self, job: Job, choice: int | None = None) -> None:
        """Stops a job, or one of its choices; a finished job is ignored."""
        self._commands.put(lambda: self._drop(job, choice))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Occupies one place during the context.

        Raises:
            Busy: no place is free.
        """
        self._take(1)
        try:
            yield
        finally:
            self._free(1)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function between two steps.

        Raises:
            UsageError: raised by the function.
            EngineFailed: the function raised another exception.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._commands.put(lambda: self._call(function, future))
        return await future

    def _take(self, places: int) -> None:
        if self.taken + places > self.room:
            raise Busy
        self.taken += places

    def _free(self, places: int) -> None:
        self.taken -= places

    # the thread's side

    def _run(self) -> None:
        while self._run_commands(wait=not any(lane.jobs for lane in self._lanes.values())):
            for lane in self._lanes.values():
                if lane.jobs:
                    self._step(lane)

    def _run_commands(self, *, wait: bool) -> bool:
        """Runs queued commands; returns False to stop the thread."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _add(self, job: Job) -> None:
        lane = self._lanes[job.model]
        try:
            for choice, prompt in enumerate(job.prompts):
                job.keys[lane.session.add(prompt, job.logprobs)] = choice
        except Exception as error:
            self._fail(lane, job, self._logged_error(error))
            return
        lane.jobs |= dict.fromkeys(job.keys, job)
        self._send(job, [])

    def _step(self, lane: _Lane) -> None:
        try:
            chunks = lane.session.step()
        except Exception as error:
            failure = self._logged_error(error)
            for job in dict.fromkeys(lane.jobs.values()):
                self._fail(None, job, failure)
            lane.jobs.clear()
            lane.session = lane.open_session()
            return
        chunks_of_jobs: dict[Job, list[Chunk]] = {}
        for chunk in chunks:
            if chunk.index not in lane.jobs:
                continue
            job = lane.jobs[chunk.index]
            if isinstance(chunk, Refused):
                self._fail(lane, job, self._logged_error(chunk.error))
                continue
            chunks_of_jobs.setdefault(job, []).append(replace(chunk, index=job.keys[chunk.index]))
            if chunk.finish:
                del lane.jobs[chunk.index], job.keys[chunk.index]
        for job, part in chunks_of_jobs.items():
            self._send(job, part)
            self._end_if_empty(job)

    def _drop(self, job: Job, choice: int | None) -> None:
        lane = self._lanes[job.model]
        for key in [key for key, found in job.keys.items() if choice is None or found == choice]:
            lane.session.drop(key)
            lane.jobs.pop(key, None)
            del job.keys[key]
        self._end_if_empty(job)

    def _fail(self, lane: _Lane | None, job: Job, error: Exception) -> None:
        if lane is not None:
            for key in job.keys:
                lane.session.drop(key)
                lane.jobs.pop(key, None)
        job.keys.clear()
        self._send(job, error)
        self._end_if_empty(job)

    def _end_if_empty(self, job: Job) -> None:
        if not job.keys and job.open:
            job.open = False
            self._post(self._free, len(job.prompts))

    def _call(self, function: Callable[[], T], future: asyncio.Future[T]) -> None:
        try:
            if future.cancelled():
                return
            result = function()
        except Exception as error:
            self._post(_settle, future, None, self._logged_error(error))
        else:
            self._post(_settle, future, result, None)

    def _logged_error(self, error: Exception) -> Exception:
        """The error for the request; errors that are not the user's are logged."""
        if isinstance(error, UsageError):
            return error
        log.error("the model failed", exc_info=error)
        return EngineFailed()

    def _send(self, job: Job, event: list[Chunk] | Exception) -> None:
        self._post(job.events.put_nowait, event)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *arguments)


def _settle(future: asyncio.Future[object], result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
