"""Checks requests before the application: authentication, size and time limits."""

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
"""The path without authentication."""
SWALLOWED = 8
"""A body over the limit is read up to this multiple of it, so that the client reads the response."""


class Guard:
    """Middleware that checks the API key and reads the body before the application.

    Args:
        app: the application.
        key: the API key of requests. None for no key; the Host header must then name this machine, which prevents DNS
            rebinding.
        host: address that the server listens on.
        max_body: limit of the body, in bytes.
        seconds: time limit for the body.
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
        """The error for a request without permission."""
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
        """The body, up to ``limit`` bytes; None if the client disconnected."""
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
    """The host name without port, in lower case; empty if invalid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receives the body again, then later messages such as the disconnect."""
    first = True

    async def again() -> MutableMapping[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def answer(error: ApiError, send: Send) -> None:
    """Sends an error response without the application."""
    body = dumps(error.body())
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol with a time limit for request headers; uvicorn itself waits without limit."""

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
            """Starts the timer while headers are incomplete; between requests uvicorn's keep-alive limit applies."""
            if self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
                self._unwatch()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return PatientProtocol
