"""Runs the application until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ftcore.api.option_groups import ServingOptions
from ftcore.errors import Problem, UsageError
from ftcore.serving.limits import LOOPBACK, patient_protocol

CONNECTIONS = 1000
"""Limit of open connections; uvicorn answers further ones with status 503."""


class Server(uvicorn.Server):
    """uvicorn's server, without raising the signal again after shutdown."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal waits for running answers; a second Ctrl-C stops at once."""
        if (
            threading.current_thread() is not threading.main_thread()
        ):  # Python allows signal handlers only in the main thread
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def server(app: Any, options: ServingOptions, **more: Any) -> Server:
    """Creates a server for an application, without starting it."""
    config = uvicorn.Config(
        app,
        host=options.serve_host,
        port=options.serve_port,
        http=patient_protocol(options.serve_read_timeout),
        ws="none",
        lifespan="on",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(options.serve_shutdown),
        **more,
    )
    return Server(config)


def listen(options: ServingOptions) -> socket.socket:
    """Binds a socket to the address of the options; the server accepts connections later.

    Raises:
        UsageError: the address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in options.serve_host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((options.serve_host, options.serve_port))
    except OSError as error:
        found.close()
        reason = f"cannot listen on port {options.serve_port} of {options.serve_host}: {error.strerror}"
        raise UsageError(
            Problem(reason, hint="write another serve_port (0 selects a free one) or serve_host")
        ) from None
    return found


def url(taken: socket.socket) -> str:
    """The URL of the API."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def api_key(options: ServingOptions) -> str | None:
    """The API key of requests.

    Raises:
        UsageError: the key file is unreadable or empty, or other machines have access without a key.
    """
    key = os.environ.get("FT_API_KEY") or _from_file(options.serve_api_key_file)
    if key is None and options.serve_host not in LOOPBACK:
        reason = f"serve_host {options.serve_host} accepts requests from other machines, and no API key is set"
        hint = "set FT_API_KEY or serve_api_key_file, or listen on 127.0.0.1"
        raise UsageError(Problem(reason, hint=hint))
    return key


def _from_file(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        key = Path(name).expanduser().read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Problem(f"{name} cannot be read: {error}", "serve_api_key_file")) from error
    if not key:
        raise UsageError(Problem(f"{name} has no key in its first line", "serve_api_key_file"))
    return key
