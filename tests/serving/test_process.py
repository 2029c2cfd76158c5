"""``ft serve`` as a process: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from click.testing import CliRunner

from ftcore.cli.serve import command
from ftcore.errors import UsageError

CODE = "import sys; from ftcore.cli import main; main(sys.argv[1:])"


@contextmanager
def served(model: Path) -> Iterator[tuple[Any, str]]:
    """The process, when it listens, and where."""
    words = ["serve", "--model", str(model), "--port", "0", "do_sample=false", "max_new_tokens=400"]
    environment = {name: value for name, value in os.environ.items() if name != "FT_API_KEY"}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as process:
        try:
            lines = iter(process.stderr.readline, "")
            found = next(found for line in lines if (found := re.match(r"listening on (\S+);", line)))
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_answers_have_ended(tiny_model_dir: Path, number: int) -> None:
    with served(tiny_model_dir) as (process, url):
        asked = {"model": tiny_model_dir.name, "messages": [{"role": "user", "content": "hello"}], "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=asked, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            *_, last, done, _ = lines
        assert done == "data: [DONE]" or last == "data: [DONE]"
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_what_is_wrong_is_said_before_the_model_loads(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FT_API_KEY", raising=False)

    def refused(*words: str) -> str:
        with pytest.raises(UsageError) as error:
            CliRunner().invoke(command, ["--model", str(tiny_model_dir), *words], catch_exceptions=False)
        return str(error.value)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("--port", str(port)) == (
            f"cannot listen on port {port} of 127.0.0.1: Address already in use;"
            " write another serve_port (0 selects a free one) or serve_host"
        )
    assert refused("--host", "0.0.0.0").startswith("serve_host 0.0.0.0 accepts requests from other machines")
    assert refused("--score", "--adapter", "a=b") == "--score: a reward model is served alone, without named adapters"
    for name in [name for name in sys.modules if name.startswith("ftcore.serving.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert refused() == "ft serve needs uvicorn, which is not installed; pip install 'ftcore[serve]'"


def test_the_manifest_of_options_has_no_key(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in a file or the environment, never in an option that plans and manifests show."""
    from ftcore.api.option_groups import ServingOptions

    assert not [name for name in ServingOptions.model_fields if name.endswith("api_key")]
    assert json.dumps(ServingOptions().model_dump())
