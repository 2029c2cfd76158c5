"""A server in a thread, on a port of its own, and OpenAI's client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftcore.serving.app import create_app
from ftcore.serving.served_models import load
from ftcore.serving.server import server

OPTIONS = ("do_sample=false", "max_new_tokens=24", "infer_dtype=float32", "serve_port=0")


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until this holds.

    Raises:
        TimeoutError: something hangs.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


@dataclass
class Running:
    """A server: its address, its application's state, and its models by name."""

    url: str
    app: Any
    served: Any

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return self.app.state.worker.taken

    def settled(self, places: int = 0) -> int:
        """Places that are taken, once it is so many or two minutes are over."""
        with suppress(TimeoutError):
            until(lambda: self.taken == places)
        return self.taken

    def client(self, **more: Any) -> Any:
        """OpenAI's own, without its retries."""
        import openai

        settings = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60.0}
        return openai.OpenAI(**(settings | more))


@contextmanager
def running(targets: Any, key: str | None = None) -> Iterator[Running]:
    """A server for these targets."""
    served = load(targets)
    app = create_app(served, key=key)
    program = server(app, next(iter(served.values())).plan.serving, log_level="critical")
    thread = threading.Thread(target=lambda: asyncio.run(program.serve()))
    thread.start()
    try:
        until(lambda: program.started or not thread.is_alive())
        assert program.started
        port = program.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", app, served)
    finally:
        program.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def targets(tiny_model_dir: Path, built_in: Any) -> Callable[..., Any]:
    """``targets("option=value", ...)``: the tiny model, named tiny."""
    from ftcore.inference.target import find_target

    def find(*overrides: str, model: Path = tiny_model_dir, plugins: Any = None) -> Any:
        words = [*OPTIONS, *overrides]
        return {"tiny": find_target(None, model=str(model), overrides=words, plugins=plugins or built_in)}

    return find


@pytest.fixture(scope="session")
def tiny(targets: Callable[..., Any]) -> Iterator[Running]:
    """The tiny model, greedy, 24 tokens; shared by many tests."""
    with running(targets()) as found:
        yield found


@pytest.fixture(scope="session")
def client(tiny: Running) -> Iterator[Any]:
    """OpenAI's client of it."""
    with tiny.client() as found:
        yield found
