"""What stands before the application: who may ask, how much, and how slowly."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ftcore.serving.http_errors import ApiError, dumps

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = "/health"
"""The one path that needs no key."""
SWALLOWED = 8
"""A body that is too large is read to this many times the limit, so that the client comes to read the answer."""


class Guard:
    """Asks for the key, and reads the body before the application sees the request.

    Args:
        app: what is guarded.
        key: that requests must bring; None where none is needed, and the request must then name this machine as the
            browser's address bar would: a page whose name was made to point here cannot ask.
        host: that the server listens on.
        max_body: bytes.
        seconds: in which the body must have come.
    """

    def __init__(self, app: Application, *, key: str | None, host: str, max_body: int, seconds: float) -> None:
        self.app, self.key, self.max_body, self.seconds = app, key, max_body, seconds
        self.hosts = {*LOOPBACK, host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        stranger = self._refusal(headers) if scope["path"] != OPEN else None
        try:
            body = await self._body(receive, 0 if stranger else self.max_body)
        except ApiError as error:
            await answer(stranger or error, send)
            return
        if stranger:
            await answer(stranger, send)
        elif body is not None:
            await self.app(scope, _replay(body, receive), send)

    def _refusal(self, headers: MutableMapping[str, str]) -> ApiError | None:
        """Why whoever asks may not."""
        if self.key is None:
            if _hostname(headers.get("host", "")) in self.hosts:
                return None
            return ApiError(
                403, "the Host header names another machine; use localhost, or start the server with an API key"
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode("utf-8", "surrogateescape"))
        if scheme.lower() == "bearer" and right:
            return None
        what = "the API key is wrong" if given else "there is no API key; send Authorization: Bearer KEY"
        return ApiError(401, what, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _body(self, receive: Receive, limit: int) -> bytes | None:
        """The whole body, if it has at most so many bytes; None when the client went away."""
        size, parts = 0, []
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= limit:
                        parts.append(part)
                    elif size > SWALLOWED * self.max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            reason = f"the request was not received within {self.seconds:g} seconds"
            raise ApiError(408, reason, headers={"connection": "close"}) from None
        if size > limit:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        reason = f"the request is larger than {self.max_body} bytes (serve_max_body)"
        return ApiError(413, reason, code="request_too_large", headers={"connection": "close"})


def _hostname(host: str) -> str:
    """Without the port, in lower case; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what comes after it: that the client goes away."""
    first = True

    async def again() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def answer(error: ApiError, send: Send) -> None:
    """An error, from outside the application."""
    body = dumps(error.body())
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which closes a connection whose request's head does not come in time; uvicorn would wait."""

    class PatientProtocol(H11Protocol):
        """See above."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unwatch()

        def _watch(self) -> None:
            """Times a head that is not complete; between two requests uvicorn's own time holds."""
            if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
                self._unwatch()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return PatientProtocol
