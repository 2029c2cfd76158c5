"""Tools both ways, on an engine of a plugin that says what it is told, so that answers are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from ftcore.api.components import ChatTemplate, Generator, InferenceEngine
from ftcore.api.inference_types import Chunk
from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import UsageError
from ftcore.serving.tool_calls import CallText, learn
from ftcore.testing import tiny_tokenizer

from .conftest import Running, running

UNDERSTOOD = """qwen qwen3 qwen3_vl qwen3_5 qwen3_coder mimo_v2 hy3 bailing_v2 bailing_v3 seed_oss llama3_1
    llama4 mistral mistral_small ministral3 deepseek3_1 glm4 glm4_moe glm4_7 granite3 granite4
    minimax1 minimax2 gpt_oss""".split()
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array", "items": {}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": PROPERTIES, "required": ["city"]},
    },
}
CALL = {"city": "Paris, {France}", "days": 3, "tags": ["a", "b c"]}


def renderer_of(template: ChatTemplate) -> Renderer:
    tokens = ("<|endoftext|>", *template.stop[1:], "[TOOL_CALLS]", *template.stop[:1])
    tokenizer = tiny_tokenizer(tuple(dict.fromkeys(tokens)))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return Renderer(tokenizer, template.source(), stop=template.stop)


def with_tools(plugins: Any) -> list[ChatTemplate]:
    return [offer.component for offer in plugins.of(ChatTemplate) if offer.component.tool_dialect]


@pytest.mark.slow
def test_what_templates_write_is_read_back(built_in: Any) -> None:
    """Or not understood at all, by which calls stay text; those above are."""
    templates = with_tools(built_in)
    assert len(templates) > 40
    failed = set()
    for template in templates:
        renderer = renderer_of(template)
        if (notation := learn(renderer)) is None:
            failed.add(template.name)
            continue
        written = {"type": "function", "function": {"name": "weather", "arguments": CALL}}
        answer = Message("assistant", "", tool_calls=(written,))
        rendered = renderer.render(Chat((Message("user", "?"), answer), (TOOL,)))
        said = rendered.text[rendered.said[-1].start : rendered.said[-1].end]
        ids = renderer.tokenizer(said, add_special_tokens=False)["input_ids"]
        reader = CallText(notation, [TOOL])
        text = "".join(map(reader.add, renderer.tokenizer.decode(ids, skip_special_tokens=True)))
        more, calls = reader.rest()
        assert (more, calls) == ("", [("weather", CALL)]), template.name
        assert text.replace("<think>", "").replace("</think>", "").strip() == "", template.name
    assert failed & set(UNDERSTOOD) == set()
    assert len(failed) < len(templates) / 4


def test_templates_without_tools_have_no_notation(built_in: Any) -> None:
    plain = [offer.component for offer in built_in.of(ChatTemplate) if not offer.component.tool_dialect]
    assert [one.name for one in plain[:20] if one.source() and learn(renderer_of(one))] == []


class Parrot(Generator):
    """Says the system message, three letters at a time."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def stream(self, prompts: Any) -> Iterator[Chunk]:
        for index, prompt in enumerate(prompts):
            self.heard.append(prompt)
            text = prompt.messages[0].content
            if text == "no":
                raise UsageError("the parrot will not say this")
            yield from (Chunk(index, text[at : at + 3]) for at in range(0, len(text), 3))
            yield Chunk(index, "", "stop")


class ParrotEngine(InferenceEngine):
    """Of a plugin; it knows nothing of sessions."""

    def load(self, plan: Any) -> Parrot:
        return Parrot()


@pytest.fixture
def parrot(targets: Any, with_plugins: Any, hooks: Any) -> Callable[[str], AbstractContextManager[Running]]:
    """``parrot("template")``: a server of it."""

    @contextmanager
    def serve(template: str) -> Iterator[Running]:
        engine = ParrotEngine(name="parrot", summary="for a test")
        plugins = with_plugins(acme=hooks(ft_inference_engines=lambda: [engine]))
        with running(targets("infer_backend=parrot", f"template={template}", plugins=plugins)) as server:
            yield server

    return serve


def ask(server: Running, text: str, stream: bool = False, **more: Any) -> tuple[str | None, list[Any], str]:
    """Text, calls and finish reason of an answer that is known."""
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "?"}]
    asked = {"model": "tiny", "messages": messages, "tools": [TOOL]} | more
    with server.client() as client:
        if not stream:
            choice = client.chat.completions.create(**asked).choices[0]
            calls = [
                (call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()
            ]
            return choice.message.content, calls, choice.finish_reason
        said, calls = "", []
        for chunk in client.chat.completions.create(**asked, stream=True):
            delta = chunk.choices[0].delta
            said += delta.content or ""
            calls += [(call.function.name, json.loads(call.function.arguments)) for call in delta.tool_calls or ()]
        return said or None, calls, chunk.choices[0].finish_reason


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"city": \n</tool_call>'
UNKNOWN = '<tool_call>\n{"name": "wether", "arguments": {}}\n</tool_call>'
PARIS = ("weather", {"city": "Paris"})
XML = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_out(parrot: Any, stream: bool) -> None:
    with parrot("qwen") as server:
        assert ask(server, HERMES, stream) == (None, [PARIS], "tool_calls")
        assert ask(server, f"{HERMES}\n{HERMES}", stream) == (None, [PARIS, PARIS], "tool_calls")
        text, calls, finish = ask(server, f"Let me see.\n{HERMES}", stream)
        assert ((text or "").rstrip(), calls, finish) == ("Let me see.", [PARIS], "tool_calls")
        for plain in ("a < b <tool", BROKEN, UNKNOWN, f"{HERMES} and more"):
            assert ask(server, plain, stream) == (plain, [], "stop")
        assert ask(server, HERMES, stream, tool_choice="none") == (HERMES, [], "stop")
        assert ask(server, HERMES, stream, tools=[]) == (HERMES, [], "stop")
        assert ask(server, f"{HERMES}END{HERMES}", stream, stop="END") == (None, [PARIS], "tool_calls")
    with parrot("qwen3_coder") as server:
        assert ask(server, XML, stream) == (None, [("weather", {"city": "Paris", "days": 3})], "tool_calls")


def test_tools_and_results_go_in(parrot: Any) -> None:
    calls = [
        {
            "id": f"id{number}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"n": number})},
        }
        for number in range(2)
    ]
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "id1", "content": "second"},
        {"role": "tool", "tool_call_id": "id0", "content": "first"},
    ]
    with parrot("qwen") as server, server.client() as client:
        client.chat.completions.create(model="tiny", messages=turns, tools=[TOOL])
        (heard,) = server.served["tiny"].generator.heard
        called = tuple({"type": "function", "function": {"name": "weather", "arguments": {"n": n}}} for n in range(2))
        assert heard.messages == (
            Message("user", "hello"),
            Message("assistant", "", tool_calls=called),
            Message("tool", "first"),
            Message("tool", "second"),
        )
        assert heard.tools == (TOOL,)
        client.chat.completions.create(model="tiny", messages=turns, tools=[TOOL], tool_choice="none")
        assert server.served["tiny"].generator.heard[-1].tools == ()


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (
            {"role": "tool", "tool_call_id": "x", "content": "y"},
            "messages.1.tool_call_id 'x' is not a call of the previous turn",
        ),
        (
            {"role": "user", "content": "y", "tool_call_id": "x"},
            "messages.1.tool_call_id: a user message does not have this field",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[]"}}]},
            "messages.1.tool_calls: the arguments of f are not a JSON object",
        ),
    ],
)
def test_turns_that_do_not_fit_are_refused(tiny: Any, client: Any, turn: dict[str, Any], message: str) -> None:
    import openai

    messages = [{"role": "user", "content": "hello"}, turn, {"role": "user", "content": "?"}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=messages)
    assert error.value.body["message"] == message


def test_an_engine_without_sessions_answers_in_turn(parrot: Any) -> None:
    import openai

    with parrot("qwen") as server, server.client() as client:
        turns = [{"role": "system", "content": "one two three four"}, {"role": "user", "content": "?"}]
        found = client.chat.completions.create(model="tiny", messages=turns, n=3)
        assert [choice.message.content for choice in found.choices] == ["one two three four"] * 3
        assert found.usage.prompt_tokens > 10
        stopped = client.chat.completions.create(model="tiny", messages=turns, stop="two")
        assert (stopped.choices[0].message.content, stopped.usage.prompt_tokens) == ("one ", found.usage.prompt_tokens)
        with pytest.raises(openai.BadRequestError, match="this inference engine does not return log-probabilities"):
            client.chat.completions.create(model="tiny", messages=turns, logprobs=True)
        turns[0]["content"] = "no"
        for stream in (False, True):
            with pytest.raises(openai.APIError, match="the parrot will not say this"):
                list(client.chat.completions.create(model="tiny", messages=turns, stream=stream))
        assert server.settled() == 0
