"""Requests become prompts, and prompts tokens, beside the model's thread and the event loop.

Python computes in one thread at a time, and hands over after 5 ms: a thread that renders keeps the model's thread
waiting at each of its hundreds of operations. So only what is done in a few milliseconds is done in a thread, and what
is longer in a process, which is forked before the model is loaded and has the tokenizers from then.
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
"""Bytes of a request that is read by the event loop and rendered in a thread: 3 ms (SmolLM2, AMD EPYC)."""
PROCESSES = 2
NICE = 5
"""How much less than the model's their claim to the processor is."""

_renderers: Mapping[str, Renderer] = {}
"""Those of the forks of this process."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class PreparingFailed(Exception):
    """What prepares prompts ended; that is no user's mistake."""


class Preparer:
    """Reads requests and makes the tokens of their prompts; used from an event loop.

    Args:
        renderers: name of a served model -> makes its prompts. Forks are made now, where this system's libraries
            survive that (Linux), and only if there is something to render.
    """

    def __init__(self, renderers: Mapping[str, Renderer]) -> None:
        self.renderers = renderers
        self._thread = ThreadPoolExecutor(1, "ft-prepare")
        self._pool = _forked(renderers) if renderers and sys.platform == "linux" else None
        self._idle = asyncio.Semaphore(PROCESSES)

    async def chat(self, body: bytes, kind: str, bounds: Callable[[Any], Bounds]) -> tuple[ChatRequest, Prompt]:
        """A request and its prompt with tokens; leaving it drops what has not begun.

        A long request comes without its messages: they are in the prompt's tokens.

        Args:
            body: of the request.
            kind: its ``Content-Type``.
            bounds: of a request that was parsed; goes to other processes.

        Raises:
            ApiError: the request is wrong.
            UsageError: the template refuses the conversation.
            PreparingFailed: the process that worked on it was killed.
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
        """What a function gives, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Ends thread and processes, when what they work on is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_process(self, function: Callable[..., T], *arguments: Any) -> T:
        """In a process, once one is idle: the pool hands further work over early, and cannot take that back."""
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
    """What work gives, as long as the client waits for it.

    Args:
        request: of the client.
        work: left when the client goes away or the time is up.
        seconds: it may take.

    Raises:
        ClientGone: the client went away.
        TimeoutError: it took longer.
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
        # from 3.12 on Python warns where other threads run; the forks use none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        pool.submit(_nothing)  # forks them all
    return pool


def _begin() -> None:
    begin_fork()
    os.nice(NICE)


def _nothing() -> None:
    """The first work."""


def _packed(body: bytes, kind: str, bounds: Callable[[Any], Bounds]) -> tuple[ChatRequest, Prompt, array[int] | None]:
    """In a fork: what is sent back is as short as the request was long."""
    asked, prompt = _read_all(_renderers, body, kind, bounds)
    ids = None if prompt.ids is None else array("i", prompt.ids)
    return asked.model_copy(update={"messages": []}), replace(prompt, messages=(), ids=None), ids


def _read_all(
    renderers: Mapping[str, Renderer], body: bytes, kind: str, bounds: Callable[[Any], Bounds]
) -> tuple[ChatRequest, Prompt]:
    asked, prompt = _read(body, kind, bounds)
    return asked, _with_ids(renderers, asked.model, prompt)


def _read(body: bytes, kind: str, bounds: Callable[[Any], Bounds]) -> tuple[ChatRequest, Prompt]:
    """A request, looked at in the order of what it costs."""
    found = parse(body, kind)
    bounds(found).check(found)
    asked = validate(ChatRequest, found)
    return asked, Prompt(conversation(asked.messages), tools(asked.tools) if asked.tool_choice != "none" else ())


def _with_ids(renderers: Mapping[str, Renderer], name: str, prompt: Prompt) -> Prompt:
    """With its tokens, if there is such a model; that there is none is told by whoever looks for it."""
    if name not in renderers:
        return prompt
    return replace(prompt, ids=tuple(renderers[name].prompt_ids(prompt.messages, prompt.tools)))
