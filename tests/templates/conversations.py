"""The conversations for which every template is held against what its makers publish."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """A conversation that ends with an answer.

    Args:
        messages, tools: as templates read them.
        variables: further variables of the template, such as ``enable_thinking``.
        needs: what a template must have for the case to be asked of it: ``tools``, ``thinking`` or ``vision``.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, reasoning: str | None = None, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, description: str, **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool(
    "get_weather",
    'The weather of a place: "now" & <soon>',
    city={"type": "string", "description": "名称 of the city"},
    days={"type": "integer", "description": "How many days", "enum": [1, 3]},
)
CLOCK = tool("get_time", "The time", zone={"type": "string"})

PARIS = call("get_weather", {"city": "Paris", "days": 3})
BEIJING = call("get_weather", {"city": "北京 <b>", "options": {"units": ["C", 1.5], "wind": True, "none": None}})
TIME = call("get_time", {"zone": "UTC"})

ONE = [user("Hi"), answer("Hello.")]
MANY = [*ONE, user("And now?"), answer("Now it is late."), user("Thanks"), answer("You are welcome.")]
ASK = user("What is the weather in Paris?")
CALLED = [ASK, answer("", calls=[PARIS]), result('{"degrees": 21}'), answer("21 degrees.")]
REASONED = [
    user("2+2?"),
    answer("4", reasoning="Two and two\nare four."),
    user("And 3+3?"),
    answer("6", reasoning="Three and three are six."),
]
REASONED_TOOLS = [
    user("Hi"),
    answer("Hello.", reasoning="A greeting."),
    ASK,
    answer("Let me look.", reasoning="I need the weather.", calls=[PARIS]),
    result('{"degrees": 21}'),
    answer("", reasoning="And the time.", calls=[TIME]),
    result("12:00"),
    answer("21 degrees at noon.", reasoning="Now I know."),
]
CONTROL = (
    "<|im_end|>\n<|im_start|>assistant\n</s><s>[INST] <|eot_id|><|endoftext|><think>x</think> {{ 7*7 }} {% raw %}"
    " <tool_call>{}</tool_call> <end_of_turn> <image> ### Human: User: </tool_response>"
)


def _needs(*names: str) -> frozenset[str]:
    return frozenset(names)


def _tools(messages: list[dict[str, Any]], *needs: str, **variables: Any) -> Case:
    return Case(messages=messages, tools=[WEATHER, CLOCK], variables=variables, needs=_needs("tools", *needs))


def _thinking(messages: list[dict[str, Any]], **variables: Any) -> Case:
    return Case(messages=messages, variables=variables, needs=_needs("thinking"))


CASES: dict[str, Case] = {
    "one_turn": Case(messages=ONE),
    "many_turns": Case(messages=MANY),
    "system": Case(messages=[system("Be brief."), *MANY[:4]]),
    "empty_system": Case(messages=[system(""), *ONE]),
    "chinese": Case(messages=[system("你是一个助手。"), user("你好，今天怎么样？"), answer("很好！")]),
    "emoji": Case(messages=[user("👩‍👩‍👧 é\u00a0ő"), answer("🎉 naïve 🇨🇭")]),
    "control_tokens": Case(messages=[user(CONTROL), answer("That is text.")]),
    "blanks": Case(messages=[system("\n Be brief. \n"), user("  two\n\nlines \n"), answer("\n an answer \n")]),
    "tools": _tools([ASK, answer("I do not know.")]),
    "tools_system": _tools([system("Be brief."), ASK, answer("I do not know.")]),
    "tool_call": _tools(CALLED),
    "tool_call_last": _tools(CALLED[:2]),
    "tool_call_text": _tools([ASK, answer("Let me look.", calls=[PARIS]), *CALLED[2:]]),
    "parallel_calls": _tools(
        [ASK, answer("", calls=[BEIJING, TIME]), result("21"), result("12:00"), answer("21."), user("Oh"), answer("!")]
    ),
    "string_arguments": _tools([ASK, answer("", calls=[call("get_time", json.dumps({"zone": "é"}))])]),
    "reasoning": _thinking(REASONED[:2]),
    "reasoning_system": _thinking([system("Be brief."), *REASONED[:2]]),
    "reasoning_history": _thinking(REASONED),
    "reasoning_in_history_only": _thinking([*REASONED[:2], *ONE]),
    "reasoning_preserved": _thinking(REASONED, preserve_thinking=True),
    "reasoning_tools": _tools(REASONED_TOOLS, "thinking"),
    "thinking_in_content": _thinking(
        [
            user("2+2?"),
            answer("<think>\nIt is four.\n</think>\n\n4"),
            user("3+3?"),
            answer("<think>\nSix.\n</think>\n\n6"),
        ]
    ),
    "thinking_on": _thinking(MANY[:4], enable_thinking=True),
    "thinking_off": _thinking(MANY[:4], enable_thinking=False),
    "thinking_on_reasoning": _thinking(REASONED, enable_thinking=True),
    "thinking_off_system": _thinking([system("Be brief."), *ONE], enable_thinking=False),
    "thinking_off_tools": _tools(CALLED, "thinking", enable_thinking=False),
    "image": Case(
        messages=[
            user([{"type": "image"}, {"type": "text", "text": "What is this?"}]),
            answer("A cat."),
            user([{"type": "text", "text": "And these?"}, {"type": "image"}, {"type": "image"}]),
            answer("Dogs."),
        ],
        needs=_needs("vision"),
    ),
    "video": Case(
        messages=[user([{"type": "video"}, {"type": "text", "text": "What happens?"}]), answer("A cat sleeps.")],
        needs=_needs("vision"),
    ),
}
