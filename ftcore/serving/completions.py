"""``/v1/chat/completions``: turns a request into a job, and its chunks into an answer."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request

from ftcore.api.inference_types import Chunk, Prompt
from ftcore.errors import UsageError
from ftcore.serving.choices import Choice, Piece, Whole, logprobs
from ftcore.serving.constrained_schema import MAX_SEED, ChatRequest
from ftcore.serving.http_errors import ApiError, dumps, failed, refused
from ftcore.serving.preparing import ClientGone, PreparingFailed, attended
from ftcore.serving.served_models import Served
from ftcore.serving.worker import Busy, Job, Worker

log = logging.getLogger("uvicorn.error")


@dataclass
class Completion:
    """One request in progress.

    Args:
        asked: the request; its messages may be missing.
        prompt: the prompt of the request.
        served: the model.
        worker: generates the answer.
        begun: arrival time of the request, in seconds of the monotonic clock.
    """

    asked: ChatRequest
    prompt: Prompt
    served: Served
    worker: Worker
    begun: float
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        asked, prompt = self.asked, self.prompt
        self.deadline = self.begun + self.served.plan.serving.serve_timeout
        count = asked.n or 1
        self.choices = [Choice(asked.stops, self.served.notation, prompt.tools) for _ in range(count)]
        seeds = [None if asked.seed is None else (asked.seed + number) % (MAX_SEED + 1) for number in range(count)]
        prompts = [replace(prompt, settings=self._settings(), seed=seed) for seed in seeds]
        self.job = Job(self.served.name, prompts, (asked.top_logprobs or 0) if asked.logprobs else None)
        self.left = count

    async def start(self, request: Request) -> None:
        """Waits until the prompts are accepted.

        Raises:
            ApiError: a prompt is refused, or the queue is full.
            ClientGone: the client disconnected.
        """
        if len(self.job.prompts) > self.worker.room:
            raise ApiError(400, f"n exceeds the limit of {self.worker.room} answers", param="n")
        reserve(self.worker, self.job)
        self.worker.submit(self.job)
        await watched(request, self.job, self._next)

    async def whole(self, request: Request) -> dict[str, Any]:
        """The response body without streaming."""
        wholes = [Whole() for _ in self.choices]
        await watched(request, self.job, lambda: self._collect(wholes))
        choices = []
        for index, whole in enumerate(wholes):
            message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
            if whole.calls:
                message |= {"content": whole.text or None, "tool_calls": whole.calls}
            scored = logprobs(whole.scored) if self.asked.logprobs else None
            found = {"index": index, "message": message, "logprobs": scored, "finish_reason": whole.finish}
            choices.append(found)
        return self._envelope("chat.completion", choices) | {"usage": self._usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events; closing the iterator stops the answer."""
        more: dict[str, Any] = {"usage": None} if self._includes_usage() else {}
        try:
            for index in range(len(self.choices)):
                yield self._event(index, {"role": "assistant", "content": "", "refusal": None}, **more)
            while self.left:
                for chunk in await self._next():
                    piece = self._take(chunk)
                    if piece.text or piece.scored or piece.calls:
                        yield self._event(chunk.index, _delta(piece), scored=piece.scored, **more)
                    if piece.finish:
                        yield self._event(chunk.index, {}, finish=piece.finish, **more)
            if self._includes_usage():
                yield _sse(self._envelope("chat.completion.chunk", []) | {"usage": self._usage()})
        except ApiError as error:
            # the status is already sent: clients treat an event with "error" as an error
            yield _sse(error.body())
            return
        except Exception as error:
            log.error("an answer failed", exc_info=error)
            yield _sse(failed().body())
            return
        finally:
            self.worker.drop(self.job)
        yield b"data: [DONE]\n\n"

    async def _collect(self, wholes: list[Whole]) -> None:
        while self.left:
            for chunk in await self._next():
                wholes[chunk.index].add(self._take(chunk))

    async def _next(self) -> list[Chunk]:
        """The job's next chunks, before the deadline."""
        try:
            event = await asyncio.wait_for(self.job.events.get(), max(self.deadline - time.monotonic(), 0))
        except TimeoutError:
            raise late(self.served.plan.serving.serve_timeout) from None
        if isinstance(event, Exception):
            raise told(event)
        return event

    def _take(self, chunk: Chunk) -> Piece:
        choice = self.choices[chunk.index]
        over = choice.finish is not None
        piece = choice.take(chunk)
        if piece.finish and not over:
            self.left -= 1
            if not chunk.finish:
                self.worker.drop(self.job, chunk.index)
        return piece

    def _settings(self) -> dict[str, Any]:
        """Generation settings of the request, which override the plan's options."""
        asked, plan = self.asked, self.served.plan
        limit = plan.serving.serve_max_tokens
        if asked.tokens is not None and asked.tokens > limit:
            reason = f"max_tokens {asked.tokens} exceeds the limit of {limit} (serve_max_tokens)"
            raise ApiError(400, reason, param="max_tokens")
        settings: dict[str, Any] = {}
        if asked.tokens is not None or plan.generation.max_length is None:
            settings["max_new_tokens"] = asked.tokens or min(plan.generation.max_new_tokens, limit)
        sampling_settings = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k}
        sampling_settings = {name: value for name, value in sampling_settings.items() if value is not None}
        settings |= {"repetition_penalty": asked.repetition_penalty} if asked.repetition_penalty else {}
        # sampling options of the request imply sampling
        return settings | sampling_settings | ({"do_sample": True} if sampling_settings else {})

    def _includes_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _usage(self) -> dict[str, int]:
        prompt = max(choice.prompt_tokens for choice in self.choices)
        made = sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _event(
        self, index: int, delta: Mapping[str, Any], *, scored: Any = (), finish: Any = None, **more: Any
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self.asked.logprobs and scored:
            choice["logprobs"] = logprobs(scored)
        return _sse(self._envelope("chat.completion.chunk", [choice]) | more)

    def _envelope(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        name = self.served.name
        return {"id": self.id, "object": kind, "created": self.created, "model": name, "choices": choices}


async def prepared(
    request: Request, work: Coroutine[Any, Any, tuple[ChatRequest, Prompt]], worker: Worker, seconds: float
) -> tuple[ChatRequest, Prompt]:
    """Parses and renders a request; it occupies a place in the queue meanwhile.

    Args:
        request: the HTTP request.
        work: coroutine of `Preparer.chat`.
        worker: manages the queue.
        seconds: time limit.

    Raises:
        ApiError: the request is wrong, the queue is full, or the time is up.
        ClientGone: the client disconnected.
    """
    try:
        with worker.place():
            return await attended(request, work, seconds)
    except Busy:
        work.close()
        raise busy() from None
    except TimeoutError:
        raise late(seconds) from None
    except UsageError as error:
        raise refused(error) from None
    except PreparingFailed:
        raise failed() from None


def late(seconds: float) -> ApiError:
    """The error of a timeout."""
    reason = f"the answer was not ready within {seconds:g} seconds (serve_timeout)"
    return ApiError(504, reason, kind="server_error", code="timeout")


def reserve(worker: Worker, job: Job) -> None:
    """Reserves places in the queue for a job.

    Raises:
        ApiError: 429, the queue is full.
    """
    try:
        worker.reserve(job)
    except Busy:
        raise busy() from None


def busy() -> ApiError:
    """The error of a full queue."""
    reason = "the request queue is full (serve_batch + serve_queue); try again"
    return ApiError(429, reason, kind="rate_limit_error", code="queue_full", headers={"retry-after": "1"})


def told(event: Exception) -> ApiError | ClientGone:
    """Converts the error of a job to a response."""
    if isinstance(event, ApiError | ClientGone):
        return event
    return refused(event) if isinstance(event, UsageError) else failed()


async def watched(request: Request, job: Job, work: Callable[[], Any]) -> Any:
    """Awaits work on a job; the job receives `ClientGone` if the client disconnects."""
    watcher = asyncio.create_task(_watch(request, job))
    try:
        return await work()
    finally:
        watcher.cancel()


async def _watch(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.events.put_nowait(ClientGone())


def _delta(piece: Piece) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": piece.text} if piece.text or not piece.calls else {}
    if piece.calls:
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(piece.calls)]
    return delta


def _sse(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"
