"""Turns requests into prompts and tokens, outside of the model's thread and the event loop.

Python runs one thread at a time and switches every 5 ms, so a rendering thread would delay each operation of the
model's thread. Only short requests are therefore rendered in a thread. Longer ones are rendered in a process, which is
forked before the model is loaded and has the tokenizers.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
import warnings
from array import array
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ftcore.api.inference_types import Prompt
from ftcore.data.pipeline.worker_pool import begin_fork
from ftcore.serving.bounds import Bounds
from ftcore.serving.constrained_schema import ChatRequest, parse, validate
from ftcore.serving.request_messages import conversation, tools

if TYPE_CHECKING:
    from starlette.requests import Request

    from ftcore.data.chat_template.renderer import Renderer

log = logging.getLogger("uvicorn.error")
T = TypeVar("T")
SHORT = 4096
"""Requests up to this size in bytes are rendered in a thread: 3 ms (SmolLM2, AMD EPYC)."""
PROCESSES = 2
NICE = 5
"""Increment of the nice value of these processes."""

_renderers: Mapping[str, Renderer] = {}
"""The renderers of the worker processes."""


class ClientGone(Exception):
    """The client disconnected."""


class PreparingFailed(Exception):
    """A process that prepares prompts was killed."""


class Preparer:
    """Parses requests and tokenises their prompts; used from an event loop.

    Args:
        renderers: name of a served model -> its renderer. On Linux, where libraries survive a fork, the constructor
            forks the worker processes, if there are renderers.
    """

    def __init__(self, renderers: Mapping[str, Renderer]) -> None:
        self.renderers = renderers
        self._thread = ThreadPoolExecutor(1, "ft-prepare")
        self._pool = _forked(renderers) if renderers and sys.platform == "linux" else None
        self._idle = asyncio.Semaphore(PROCESSES)

    async def chat(self, body: bytes, kind: str, bounds: Callable[[Any], Bounds]) -> tuple[ChatRequest, Prompt]:
        """A request and its tokenised prompt; cancelling drops queued work.

        A long request is returned without its messages, which are in the prompt's tokens.

        Args:
            body: body of the request.
            kind: its ``Content-Type``.
            bounds: returns the size limits of a parsed request; must be picklable.

        Raises:
            ApiError: the request is wrong.
            UsageError: the template refuses the conversation.
            PreparingFailed: the worker process was killed.
        """
        if len(body) <= SHORT:
            asked, prompt = _read(body, kind, bounds)
            return asked, await self.run(lambda: _with_ids(self.renderers, asked.model, prompt))
        if self._pool is None:
            return await self.run(lambda: _read_all(self.renderers, body, kind, bounds))
        pool = self._pool
        try:
            asked, prompt, ids = await self._in_process(_packed, body, kind, bounds)
        except BrokenExecutor as error:
            log.error("a process that prepares prompts was killed", exc_info=error)
            if self._pool is pool:
                self._pool = _forked(self.renderers)
            raise PreparingFailed from error
        return asked, replace(prompt, ids=None if ids is None else tuple(ids))

    async def run(self, function: Callable[[], T]) -> T:
        """Runs a function in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Stops thread and processes after their current work."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_process(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs a function in an idle process: work queued in the pool could not be cancelled."""
        await self._idle.acquire()
        loop = asyncio.get_running_loop()

        def done(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._idle.release)

        assert self._pool is not None
        try:
            future = self._pool.submit(function, *arguments)
        except BaseException:
            self._idle.release()
            raise
        future.add_done_callback(done)
        return await asyncio.wrap_future(future)


async def attended(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of work, while the client is connected.

    Args:
        request: the HTTP request.
        work: cancelled if the client disconnects or the time is up.
        seconds: time limit.

    Raises:
        ClientGone: the client disconnected.
        TimeoutError: the time limit was exceeded.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise TimeoutError
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forked(renderers: Mapping[str, Renderer]) -> ProcessPoolExecutor:
    global _renderers
    _renderers = renderers
    pool = ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("fork"), initializer=_begin)
    with warnings.catch_warnings():
        # Python 3.12 warns about a fork while other threads run; the forks do not use these threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pool.submit(_nothing)  # forks them all
    return pool


def _begin() -> None:
    begin_fork()
    os.nice(NICE)


def _nothing() -> None:
    """Does nothing; starts the worker processes."""


def _packed(body: bytes, kind: str, bounds: Callable[[Any], Bounds]) -> tuple[ChatRequest, Prompt, array[int] | None]:
    """Runs in a worker process; the result has tokens instead of messages, to keep it short."""
    asked, prompt = _read_all(_renderers, body, kind, bounds)
    ids = None if prompt.ids is None else array("i", prompt.ids)
    return asked.model_copy(update={"messages": []}), replace(prompt, messages=(), ids=None), ids


def _read_all(
    renderers: Mapping[str, Renderer], body: bytes, kind: str, bounds: Callable[[Any], Bounds]
) -> tuple[ChatRequest, Prompt]:
    asked, prompt = _read(body, kind, bounds)
    return asked, _with_ids(renderers, asked.model, prompt)


def _read(body: bytes, kind: str, bounds: Callable[[Any], Bounds]) -> tuple[ChatRequest, Prompt]:
    """Parses, checks and validates a request, with cheap checks first."""
    found = parse(body, kind)
    bounds(found).check(found)
    asked = validate(ChatRequest, found)
    return asked, Prompt(conversation(asked.messages), tools(asked.tools) if asked.tool_choice != "none" else ())


def _with_ids(renderers: Mapping[str, Renderer], name: str, prompt: Prompt) -> Prompt:
    """The prompt with its tokens; unchanged for an unknown model, which is reported later."""
    if name not in renderers:
        return prompt
    return replace(prompt, ids=tuple(renderers[name].prompt_ids(prompt.messages, prompt.tools)))
