"""Any request is either read or refused by name; nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.api.samples import ROLES
from ftcore.serving.constrained_schema import ChatRequest, ScoreRequest, parse, validate
from ftcore.serving.http_errors import ApiError, dumps
from ftcore.serving.request_messages import conversation, tools

TEXT = st.text(max_size=5)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANY = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
CALLS = st.fixed_dictionaries(
    {"id": TEXT, "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT | st.just("{}")})}
)
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from((*ROLES, "developer"))},
    optional={"content": TEXT | ANY, "tool_calls": st.lists(CALLS, max_size=2), "tool_call_id": TEXT, "name": ANY},
)
TOOLS = st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT}) | ANY})
FIELDS = sorted(ChatRequest.model_fields)


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {"model": TEXT | ANY, "messages": st.lists(TURNS | ANY, max_size=4) | ANY},
        optional={"tools": st.lists(TOOLS | ANY, max_size=2) | ANY},
    ),
    st.dictionaries(st.sampled_from(FIELDS) | TEXT, ANY, max_size=3),
)
def test_chat_requests(asked: dict[str, Any], more: dict[str, Any]) -> None:
    refusal = None
    try:
        found = validate(ChatRequest, parse(json.dumps(more | asked).encode(), "application/json"))
        messages, offers = conversation(found.messages), tools(found.tools)
    except ApiError as error:
        refusal = error
    if refusal is None:
        assert (len(messages), messages[-1].role == "assistant") == (len(found.messages), False)
        assert all("function" in tool for tool in offers)
    else:
        assert (refusal.status, bool(refusal.message)) == (400, True)
        assert json.loads(dumps(refusal.body()))["error"]["message"] == refusal.message


@given(
    st.dictionaries(st.sampled_from(sorted(ScoreRequest.model_fields)) | TEXT, ANY, max_size=3), st.binary(max_size=9)
)
def test_other_bodies(asked: dict[str, Any], junk: bytes) -> None:
    for body in (json.dumps(asked).encode(), junk):
        status = 400
        try:
            validate(ScoreRequest, parse(body, "application/json; charset=utf-8"))
        except ApiError as error:
            status = error.status
        assert status == 400


def test_a_key_twice() -> None:
    with pytest.raises(ApiError) as caught:
        parse(b'{"model": "m", "model": "n"}', "application/json")
    assert (caught.value.status, caught.value.message) == (
        400,
        "the request is not JSON: 'model' occurs twice in one object",
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    asked = {"model": "m", "messages": [*turns, {"role": "tool", "content": "", "tool_call_id": "1"}]}
    with pytest.raises(ApiError) as caught:
        conversation(validate(ChatRequest, parse(json.dumps(asked).encode(), "application/json")).messages)
    assert caught.value.message.endswith("the arguments of f: 'a' occurs twice in one object, at column 10")
