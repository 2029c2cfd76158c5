"""Whatever a request asks for, it is answered or refused by name, and the answer made beside it stays word for word."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.serving.constrained_schema import ChatRequest

PATH = "/v1/chat/completions"
BYSTANDER = {"model": "tiny", "messages": [{"role": "user", "content": "hello world"}]}
LEAST, MOST = 5e-324, 1.7976931348623157e308
NUMBERS = st.one_of(
    st.sampled_from(
        [
            *(0, -0.0, 1, -1, 2, LEAST, -LEAST, 1e-320, 1.1754943508222875e-38, 1e-38, 1e-39, 1e-45, 1e-20, 1e-21),
            *(3.4e38, MOST, -MOST, float("nan"), float("inf"), -float("inf"), 10**30, -(10**30), 2**31, 2**63 - 1),
            *(2**63, 2**64, 0.009, 0.01, 10, 10.000001, 1 - 1e-16, True, False, None, "1", "NaN", [], {}),
        ]
    ),
    st.integers(),
    st.floats(),
    st.floats(0, 2),
    st.integers(0, 20),
)
TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
FIELDS: dict[str, Any] = {
    "max_tokens": NUMBERS | st.integers(1, 12),
    "max_completion_tokens": NUMBERS | st.integers(1, 12),
    "temperature": NUMBERS,
    "top_p": NUMBERS,
    "top_k": NUMBERS,
    "repetition_penalty": NUMBERS,
    "n": NUMBERS | st.integers(1, 3),
    "seed": NUMBERS | st.integers(0, 2**63 - 1),
    "stop": TEXT | st.lists(TEXT, max_size=18) | NUMBERS,
    "stream": st.booleans(),
    "logprobs": st.booleans() | NUMBERS,
    "top_logprobs": NUMBERS | st.integers(0, 21),
    "presence_penalty": NUMBERS,
    "frequency_penalty": NUMBERS,
    "logit_bias": st.dictionaries(TEXT | st.integers().map(str), NUMBERS, max_size=2),
    "metadata": st.dictionaries(TEXT, NUMBERS, max_size=2),
    "user": TEXT,
}
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}), max_size=3
)


def test_every_number_that_a_request_may_hold_is_tried() -> None:
    held = {
        name
        for name, field in ChatRequest.model_fields.items()
        if any(kind in str(field.annotation) for kind in ("int", "float"))
    }
    assert held <= FIELDS.keys()


@pytest.fixture(scope="module")
def expected(tiny: Any) -> str:
    return text_of(httpx.post(tiny.url + PATH, json=BYSTANDER, timeout=60))


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


HOSTILE = st.sets(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in sorted(names)})
)


@pytest.mark.slow
@given(TURNS, HOSTILE)
def test_any_request_is_answered_or_refused_and_hurts_nobody(
    tiny: Any, expected: str, turns: list[Any], asked: dict[str, Any]
) -> None:
    content = json.dumps({"model": "tiny", **asked, "messages": [*turns, {"role": "user", "content": "?"}]}).encode()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(httpx.post, tiny.url + PATH, json=BYSTANDER, timeout=60)
        headers = {"Content-Type": "application/json"}
        found = httpx.post(tiny.url + PATH, content=content, headers=headers, timeout=60)
        assert text_of(beside.result()) == expected
    assert found.status_code in (200, 400), found.text
    if found.status_code == 400:
        assert found.json()["error"]["message"]
    elif asked.get("stream"):
        assert found.text.endswith("data: [DONE]\n\n"), found.text
    else:
        assert all(choice["finish_reason"] in ("stop", "length") for choice in found.json()["choices"])
    assert tiny.settled() == 0


@pytest.mark.parametrize("field", ["temperature", "repetition_penalty"])
@pytest.mark.parametrize("value", [5e-324, 1e-45, 1e-39, 1e-21])
def test_what_float32_cannot_divide_by_is_refused(tiny: Any, field: str, value: float) -> None:
    found = httpx.post(tiny.url + PATH, json=BYSTANDER | {field: value}, timeout=60)
    assert found.status_code == 400
    assert found.json()["error"]["param"] == field


def test_an_answer_that_fails_is_500_and_its_neighbours_go_on(
    tiny: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ft_plugins.engines.transformers.sampling import Sampler

    choose = Sampler.choose

    def failing(self: Any, ids: list[int], scores: Any) -> int:
        if self.random.initial_seed() == 77:
            raise ZeroDivisionError("secret")
        return choose(self, ids, scores)

    monkeypatch.setattr(Sampler, "choose", failing)
    asked = [BYSTANDER, BYSTANDER | {"seed": 77}, BYSTANDER | {"n": 2, "seed": 76}, BYSTANDER]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda body: httpx.post(tiny.url + PATH, json=body, timeout=60), asked))
    assert [response.status_code for response in found] == [200, 500, 500, 200]
    assert [text_of(found[0]), text_of(found[3])] == [expected, expected]
    assert found[1].json()["error"]["message"] == "the model failed during generation; the server's log has the cause"
    assert tiny.settled() == 0
    with httpx.stream("POST", tiny.url + PATH, json=BYSTANDER | {"seed": 77, "stream": True}) as response:
        *_, last = [line for line in response.iter_lines() if line]
    assert "the model failed" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_a_fault_of_the_server_itself_ends_one_stream_with_a_word(
    tiny: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftcore.serving.choices import Choice

    take = Choice.take

    def failing(self: Any, chunk: Any) -> Any:
        if self._stops.sequences:
            raise ZeroDivisionError("secret")
        return take(self, chunk)

    monkeypatch.setattr(Choice, "take", failing)
    asked = [BYSTANDER | {"stop": ["x"]}, BYSTANDER, BYSTANDER | {"stop": ["x"], "stream": True}]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda body: httpx.post(tiny.url + PATH, json=body, timeout=60), asked))
    assert (found[0].status_code, text_of(found[1])) == (500, expected)
    assert "the model failed" in found[2].text.strip().rpartition("data: ")[2]
    assert tiny.settled() == 0
