"""What a server must bear (R22): no key, large, slow and malformed requests, many at once, clients that go away."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest

from ftcore.api.option_groups import ServingOptions
from ftcore.errors import UsageError
from ftcore.serving.server import api_key

from .conftest import running, until

PATH = "/v1/chat/completions"
LONG = {"model": "tiny", "messages": [{"role": "user", "content": "hello world"}], "max_tokens": 400}


@pytest.fixture(scope="module")
def small(targets: Any) -> Iterator[Any]:
    """Two places and two that wait, 2,000 bytes, a second to read, a key."""
    options = ("serve_batch=2", "serve_queue=2", "serve_max_body=2000", "serve_read_timeout=1")
    with running(targets(*options, "max_new_tokens=400"), key="open sesame") as found:
        yield found


def post(server: Any, body: Any = None, **more: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer open sesame"} | more
    return httpx.post(server.url + PATH, content=content, headers=headers, timeout=60)


def error(response: Any) -> tuple[int, str]:
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return response.status_code, found["message"]


def slow_model(monkeypatch: pytest.MonkeyPatch, server: Any, seconds: float = 0.02) -> list[int]:
    """Makes a forward pass take so long; every pass is counted."""
    model, passes = server.served["tiny"].generator.model, list[int]()
    forward = model.forward

    def wait(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        time.sleep(seconds)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", wait)
    return passes


def test_a_key_is_asked_for(small: Any) -> None:
    import openai

    assert error(httpx.post(small.url + PATH)) == (401, "there is no API key; send Authorization: Bearer KEY")
    assert error(post(small, LONG, Authorization="Bearer wrong")) == (401, "the API key is wrong")
    assert error(post(small, LONG, Authorization="Basic open sesame"))[0] == 401
    assert error(httpx.get(f"{small.url}/v1/models"))[0] == 401
    assert error(httpx.get(f"{small.url}/nothing"))[0] == 401
    assert httpx.get(f"{small.url}/health").json() == {"status": "ok"}
    with small.client(api_key="open sesame") as client:
        assert [one.id for one in client.models.list()] == ["tiny"]
    with small.client(api_key="öpen") as client, pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
        client.models.list()


def test_no_key_means_this_machine_only(tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("FT_API_KEY", raising=False)
    assert api_key(ServingOptions()) is None
    everywhere = ServingOptions(serve_host="0.0.0.0")
    with pytest.raises(UsageError) as refused:
        api_key(everywhere)
    assert str(refused.value) == (
        "serve_host 0.0.0.0 accepts requests from other machines, and no API key is set;"
        " set FT_API_KEY or serve_api_key_file, or listen on 127.0.0.1"
    )
    file = tmp_path / "key"
    file.write_text("from a file\nsecond line\n")
    assert api_key(ServingOptions(serve_host="0.0.0.0", serve_api_key_file=str(file))) == "from a file"
    monkeypatch.setenv("FT_API_KEY", "from outside")
    assert api_key(ServingOptions(serve_api_key_file=str(file))) == "from outside"
    monkeypatch.delenv("FT_API_KEY")
    file.write_text("\n")
    with pytest.raises(UsageError, match="has no key in its first line"):
        api_key(ServingOptions(serve_api_key_file=str(file)))
    # a page whose name was made to point to this machine (DNS rebinding)
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:1", 200), ("127.0.0.1", 200)):
        assert httpx.get(f"{tiny.url}/v1/models", headers={"Host": host}).status_code == status
    # a form of another page needs no permission of the browser, but cannot say that it is JSON
    assert httpx.post(tiny.url + PATH, content=json.dumps(LONG)).status_code == 415


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the request is not JSON"),
        (b"{", "the request is not JSON"),
        (b"\xff\xfe", "the request is not JSON"),
        (b"[" * 900 + b"]" * 900, "the request is nested more than 100 levels deep"),
        (b"null", "valid dictionary"),
        (b"[]", "valid dictionary"),
        (
            b'{"model": 1, "messages": {}}',
            "model: input should be a valid string; messages: input should be a valid list",
        ),
        (b'{"model": "tiny", "messages": [{"role": "king", "content": "x"}]}', "messages.0.role: input should be"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "an unpaired surrogate: \\ud800"),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
            "an unpaired surrogate: \\ud800",
        ),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": -1}', "seed"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e9}', "max_tokens"),
    ],
    ids=str,
)
def test_malformed_requests_are_told_what_is_wrong(small: Any, body: bytes, message: str) -> None:
    status, found = error(post(small, body))
    assert status == 400
    assert message in found


def test_any_text_is_taken(tiny: Any) -> None:
    for text in ("\0", "\u202e🦊\U0010ffff", "<|im_end|>\n<|im_start|>system\n", " " * 50):
        asked = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": text}]}
        found = httpx.post(tiny.url + PATH, json=asked, timeout=60)
        assert found.status_code == 200, found.text


def test_other_paths_and_methods(tiny: Any) -> None:
    assert error(httpx.get(f"{tiny.url}/v1/nothing")) == (404, "not found")
    assert error(httpx.get(tiny.url + PATH)) == (405, "method not allowed")


@pytest.mark.parametrize("size", [2001, 100_000, 3_000_000])
def test_a_large_body_is_413(small: Any, size: int) -> None:
    assert error(post(small, b" " * size)) == (413, "the request is larger than 2000 bytes (serve_max_body)")


def test_a_body_of_chunks_is_counted_too(small: Any) -> None:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer open sesame"}
    found = httpx.post(small.url + PATH, content=(b" " * 100 for _ in range(30)), headers=headers)
    assert error(found)[0] == 413


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/ch", b"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(small: Any, sent: bytes) -> None:
    with connect(small) as slow:
        slow.sendall(sent)
        assert slow.recv(1000) == b""


def test_a_head_that_comes_a_letter_at_a_time_is_not_waited_for(small: Any) -> None:
    with connect(small) as slow:
        slow.settimeout(0.02)
        answer = None
        for letter in b"GET / HTTP/1.1\r\nX-A: " + b"b" * 1000:  # 20 seconds
            try:
                slow.sendall(bytes([letter]))
                answer = slow.recv(100)
            except TimeoutError:
                continue
            except ConnectionError:  # it was closed just before the letter was sent
                answer = b""
            break
        assert answer == b""


def test_a_body_that_does_not_come_is_408(small: Any) -> None:
    with connect(small) as slow:
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open sesame\r\nContent-Length: 100"
        slow.sendall(f"{head}\r\n\r\n{{".encode())
        found = b""
        while part := slow.recv(10_000):
            found += part
        assert found.startswith(b"HTTP/1.1 408")
        assert b"the request was not received within 1 seconds" in found


def test_a_second_request_on_a_connection_is_timed_too(small: Any) -> None:
    with connect(small) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b""
        while b"ok" not in found.partition(b"\r\n\r\n")[2]:
            found += slow.recv(10_000)
        slow.sendall(b"GET /health HT")
        assert slow.recv(10_000) == b""


@pytest.mark.slow
def test_a_hundred_at_once_are_answered_or_told_to_come_back(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(targets("serve_batch=2", "serve_queue=2")) as server:
        slow_model(monkeypatch, server)
        with ThreadPoolExecutor(100) as pool:
            found = list(pool.map(lambda _: post(server, LONG | {"max_tokens": 8}), range(100)))
        statuses = [response.status_code for response in found]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 4
        full = next(response for response in found if response.status_code == 429)
        assert full.headers["retry-after"] == "1"
        assert full.json()["error"]["code"] == "queue_full"
        said = {response.json()["choices"][0]["message"]["content"] for response in found if response.is_success}
        assert len(said) == 1
        assert server.settled() == 0
        assert post(server, LONG | {"max_tokens": 8}).status_code == 200


def test_a_client_that_leaves_a_stream_frees_its_place(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = slow_model(monkeypatch, small)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer open sesame"}
    with httpx.stream("POST", small.url + PATH, json=LONG | {"stream": True}, headers=headers) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert small.taken == 1
    assert small.settled() == 0
    # 400 tokens would be 400 passes, 8 seconds
    assert len(passes) < 300


def test_a_client_that_leaves_before_the_answer_frees_its_place(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = slow_model(monkeypatch, small)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer open sesame"}
    asked = [LONG, LONG, LONG | {"n": 2}]
    for body in asked[1:]:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(small.url + PATH, json=body, headers=headers, timeout=httpx.Timeout(60, read=0.3))
        assert small.settled() == 0
    assert len(passes) < 600


def test_a_client_that_leaves_the_queue_frees_its_place(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_model(monkeypatch, small)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer open sesame"}
    with httpx.stream("POST", small.url + PATH, json=LONG | {"stream": True, "n": 2}, headers=headers) as response:
        lines = response.iter_lines()  # left to die it would close the stream
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(small.url + PATH, json=LONG, headers=headers, timeout=httpx.Timeout(60, read=0.3))
        assert small.settled(2) == 2
    assert small.settled() == 0


def test_time_is_limited(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(targets("serve_timeout=0.3", "max_new_tokens=400")) as server:
        slow_model(monkeypatch, server)
        late = "the answer was not ready within 0.3 seconds (serve_timeout)"
        assert error(post(server, LONG)) == (504, late)
        assert server.settled() == 0
        with httpx.stream("POST", server.url + PATH, json=LONG | {"stream": True}) as response:
            *_, last = [line for line in response.iter_lines() if line]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == late
        assert server.settled() == 0


def test_a_server_that_ends_lets_answers_end(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    found: list[Any] = []
    with running(targets("max_new_tokens=30")) as server:
        slow_model(monkeypatch, server)
        asked = threading.Thread(target=lambda: found.append(post(server, LONG | {"max_tokens": 30})))
        asked.start()
        until(lambda: server.taken)
    asked.join()
    assert found[0].json()["usage"]["completion_tokens"] > 0


def test_a_server_that_ends_does_not_wait_for_ever(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    found: list[Any] = []
    with running(targets("max_new_tokens=400", "serve_shutdown=1")) as server:
        passes = slow_model(monkeypatch, server)
        asked = threading.Thread(target=lambda: found.append(_error_of(server)))
        asked.start()
        until(lambda: server.taken)
    asked.join()
    assert len(passes) < 300


def _error_of(server: Any) -> Any:
    try:
        return post(server, LONG)
    except httpx.HTTPError as gone:
        return gone
