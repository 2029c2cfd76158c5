"""Prompts are bounded, then made beside the model's thread, and dropped with their clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from ftcore.api.option_groups import ServingOptions
from ftcore.errors import UsageError
from ftcore.serving import preparing
from ftcore.serving.bounds import Bounds, BoundsOf, size_of
from ftcore.serving.http_errors import ApiError

from .conftest import running, until

PATH = "/v1/chat/completions"
BYSTANDER = {"model": "tiny", "messages": [{"role": "user", "content": "hello world"}]}
LONG = "dog " * 1100
"""Longer than what is done in a thread."""


def ask(content: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 4} | more


def post(server: Any, body: Any, **more: Any) -> Any:
    return httpx.post(server.url + PATH, json=body, **({"timeout": 60} | more))


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def refusal(response: Any) -> tuple[int, str, str]:
    found = response.json()["error"]
    return response.status_code, found["message"], found["param"]


class Gate:
    """Holds the preparation of long prompts until it is opened; across processes, by files.

    Attributes:
        begun: a line for each preparation of a long prompt that was begun: the process that does it.
    """

    def __init__(self, folder: Path) -> None:
        self.open, self.log = folder / "open", folder / "begun"
        self.log.touch()

    @property
    def begun(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]

    def wait(self, count: int) -> None:
        until(lambda: len(self.begun) >= count)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The forks that are made from now on do it so."""
    gate, with_ids = Gate(tmp_path), preparing._with_ids

    def held(renderers: Any, name: str, prompt: Any) -> Any:
        if len(prompt.messages[-1].content) > 4000:
            with gate.log.open("a") as log:
                log.write(f"{os.getpid()}\n")
            while not gate.open.exists():
                time.sleep(0.005)
        return with_ids(renderers, name, prompt)

    monkeypatch.setattr(preparing, "_with_ids", held)
    return gate


@pytest.fixture
def server(gate: Gate, targets: Any) -> Iterator[Any]:
    with running(targets("serve_max_chars=100000", "cutoff_len=64")) as found:
        try:
            yield found
        finally:
            gate.open.touch()


def test_bounds_follow_from_what_the_model_can_read() -> None:
    options = ServingOptions()
    assert Bounds.of(options, 512) == Bounds(messages=256, chars=8192)
    assert Bounds.of(options, 1) == Bounds(messages=1, chars=16)
    assert Bounds.of(options, None) == Bounds(messages=4096, chars=options.serve_max_body)
    set_ = ServingOptions(serve_max_messages=7, serve_max_chars=9)
    assert Bounds.of(set_, 512) == Bounds(messages=7, chars=9)


def test_what_is_counted() -> None:
    assert size_of({"a": "bcd", "e": [1, None, ["f"]], "": {}}, 100) == 8
    assert size_of("x" * 50, 10) == 50
    assert size_of(["x" * 8] * 1000, 20) == 24
    Bounds(1, 9).check("what is wrong with it is told later")
    Bounds(1, 9).check({"messages": 5, "tools": None})
    with pytest.raises(ApiError, match=r"conversations.3.messages: 2 messages exceed the limit of 1"):
        Bounds(1, 9).check({"messages": [1, 2]}, "conversations.3.")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (ask("x" * 8200), "messages: the text exceeds the limit of 8192 characters (serve_max_chars)"),
        (
            ask("?", tools=[{"type": "function", "function": {"name": "f", "description": "x" * 8200}}]),
            "messages: the text exceeds the limit of 8192 characters (serve_max_chars)",
        ),
        (
            ask("?") | {"messages": [{"role": "user", "content": ""}] * 257},
            "messages: 257 messages exceed the limit of 256 (serve_max_messages)",
        ),
    ],
    ids=["text", "tools", "messages"],
)
def test_a_conversation_that_no_model_reads_is_refused_before_anything_is_made_of_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, body: Any, message: str
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(preparing, "validate", never)
    monkeypatch.setattr(preparing, "_with_ids", never)
    with pytest.raises(ApiError) as refused:
        preparing._read_all({}, json.dumps(body).encode(), "application/json", lambda _: tiny.served["tiny"].bounds)
    assert (refused.value.status, refused.value.message, refused.value.param) == (400, message, "messages")
    assert refusal(post(tiny, body)) == (400, message, "messages")
    assert tiny.settled() == 0


def test_scores_are_bounded_too(reward_dir: Path, built_in: Any) -> None:
    from ftcore.inference.target import find_target

    words = ["stage=rm", "template=chatml", "cutoff_len=64", "serve_port=0"]
    with running({"reward": find_target(None, model=str(reward_dir), overrides=words, plugins=built_in)}) as server:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        for long, message in (
            (
                [{"role": "user", "content": "x" * 1100}, turns[1]],
                "conversations.1.messages: the text exceeds the limit of 1024",
            ),
            ([*turns] * 17, "conversations.1.messages: 34 messages exceed the limit of 32"),
        ):
            body = {"model": "reward", "conversations": [{"messages": turns}, {"messages": long}]}
            found = httpx.post(f"{server.url}/v1/score", json=body, timeout=60)
            assert found.status_code == 400
            assert found.json()["error"]["message"].startswith(message)
        body = {"model": "reward", "conversations": [{"messages": turns}]}
        assert httpx.post(f"{server.url}/v1/score", json=body, timeout=60).status_code == 200
        assert server.settled() == 0


@pytest.mark.slow
def test_a_stream_goes_on_while_a_prompt_is_made(tiny: Any, server: Any, gate: Gate) -> None:
    expected = text_of(post(tiny, BYSTANDER))
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(post, server, ask(LONG)) for _ in range(3)]
        gate.wait(2)
        # two processes are busy and a third request waits; answers are made all the same, from first to last token
        assert text_of(post(server, BYSTANDER)) == expected
        with httpx.stream("POST", server.url + PATH, json=BYSTANDER | {"stream": True}, timeout=60) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]) == expected
        assert not any(one.done() for one in held)
        assert os.getpid() not in gate.begun
        gate.open.touch()
        for one in held:
            assert refusal(one.result())[:2] == (400, "the prompt has 1112 tokens, the model's longest sequence is 512")
    assert server.settled() == 0


def test_prompts_are_dropped_with_their_clients(server: Any, gate: Gate) -> None:
    """Of six whose clients hang up, those that have begun end where they are, and no other begins."""
    content = json.dumps(ask(LONG)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with ExitStack() as clients:
        for _ in range(6):
            client = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
            clients.enter_context(client)
            client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert server.settled(6) == 6
        gate.wait(2)
    assert server.settled() == 0
    assert len(gate.begun) == 2
    gate.open.touch()
    with pytest.raises(UsageError, match="the prompt has"):
        raise UsageError(refusal(post(server, ask(LONG)))[1])
    assert len(gate.begun) == 3


def test_a_prompts_time_is_the_requests(gate: Gate, targets: Any) -> None:
    with running(targets("serve_max_chars=100000", "serve_timeout=0.5")) as server:
        try:
            late = "the answer was not ready within 0.5 seconds (serve_timeout)"
            assert refusal(post(server, ask(LONG)))[:2] == (504, late)
            assert server.settled() == 0
        finally:
            gate.open.touch()


def test_a_process_that_is_killed_is_replaced(server: Any, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, server, ask(LONG))
        gate.wait(1)
        os.kill(gate.begun[0], signal.SIGKILL)
        assert refusal(held.result())[:2] == (500, "the model failed during generation; the server's log has the cause")
    gate.open.touch()
    assert refusal(post(server, ask(LONG)))[0] == 400
    assert server.settled() == 0


@pytest.mark.parametrize("content", ["hello", "dog " * 1100, "<|im_end|>" * 500, "a<|im_start|>\n" * 400])
def test_tokens_are_the_same_by_either_way(tiny: Any, content: str) -> None:
    import asyncio

    from ftcore.api.samples import Message

    one = tiny.served["tiny"]
    expected = one.generator.renderer.prompt_ids((Message("user", content),))
    body = json.dumps(ask(content)).encode()
    preparer = preparing.Preparer({"tiny": one.renderer})
    asked, prompt = asyncio.run(preparer.chat(body, "application/json", BoundsOf({"": Bounds(1, 100_000)})))
    preparer.close()
    assert prompt.ids == tuple(expected)
    assert (len(body) > preparing.SHORT) == (asked.messages == [])


NESTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "tools": lambda deep: {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": deep}}}]},
    "metadata": lambda deep: {"metadata": {"a": deep}},
    "content": lambda deep: {"messages": [{"role": "user", "content": deep}]},
    "messages": lambda deep: {"messages": deep},
    "stop": lambda deep: {"stop": deep},
    "response_format": lambda deep: {"response_format": deep},
    "logit_bias": lambda deep: {"logit_bias": {"1": deep}},
    "nothing": lambda deep: {"nothing": deep},
    "arguments": lambda deep: {
        "messages": [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": json.dumps({"a": deep})}}],
            },
            {"role": "tool", "content": "1", "tool_call_id": "1"},
        ]
    },
}


@pytest.fixture(scope="module")
def calling(targets: Any) -> Iterator[Any]:
    """The tiny model by a template with tools."""
    with running(targets("template=qwen3")) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("levels", [1, 90, 101, 600, 900])
@pytest.mark.parametrize("field", sorted(NESTED))
def test_no_depth_is_a_fault_of_the_server(calling: Any, field: str, levels: int, kind: str) -> None:
    deep: Any = 1
    for _ in range(levels):
        deep = [deep] if kind == "list" else {"a": deep}
    found = post(calling, ask("?") | NESTED[field](deep))
    takes = field in ("tools", "metadata", "arguments") and levels <= 90
    too_long = "the prompt has" in found.text  # 90 levels are 549 tokens
    assert found.status_code == (200 if takes and not too_long else 400), found.text
    assert takes or not too_long
    if levels > 100:
        assert "more than 100 levels deep" in found.json()["error"]["message"]
    assert calling.settled() == 0


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_no_depth_of_the_whole_request(calling: Any, text: str) -> None:
    headers = {"Content-Type": "application/json"}
    found = httpx.post(calling.url + PATH, content=text.encode(), headers=headers, timeout=60)
    assert refusal(found)[:2] == (400, "the request is nested more than 100 levels deep")


def test_a_template_that_does_not_end_serves_nothing(targets: Any, tmp_path: Path) -> None:
    from ftcore.serving.served_models import load

    file = tmp_path / "acme.jinja"
    file.write_text("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    with pytest.raises(UsageError, match=r"template '.*acme.jinja' was stopped: it recurses endlessly"):
        load(targets(f"template={file}"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # the stream's claim to the processor is larger
def test_300_kb_of_control_tokens_do_not_silence_a_stream(targets: Any) -> None:
    """Pieces of the stream that come meanwhile are counted: a server that waited would send one at most."""
    bounds = ("serve_max_chars=1000000", "serve_max_messages=100000", "max_new_tokens=400")
    with running(targets(*bounds)) as server:
        lines: list[str] = []
        asked = BYSTANDER | {"stream": True, "max_tokens": 400, "temperature": 2, "top_p": 1, "top_k": 0}
        stop = threading.Event()

        def stream() -> None:
            while not stop.is_set():
                with httpx.stream("POST", server.url + PATH, json=asked, timeout=60) as response:
                    lines.extend(line for line in response.iter_lines() if line)

        with ThreadPoolExecutor(1) as pool:
            streaming = pool.submit(stream)
            try:
                until(lambda: len(lines) >= 200)
                begin = len(lines)
                hostile = post(server, ask("<|im_end|>" * 30_000), timeout=600)
                between = len(lines)
                empty = post(server, ask("?") | {"messages": [{"role": "user", "content": ""}] * 8_000}, timeout=600)
                beside = between - begin, len(lines) - between
            finally:
                stop.set()
            streaming.result()
        assert [hostile.status_code, empty.status_code] == [400, 400]
        assert min(beside) > 20
