"""Formats beyond one question and its answer: sharegpt, prompt and completion, text, preferences, marks, media."""

from __future__ import annotations

from typing import Any

import pytest

from ft_plugins.formats import FORMATS
from ftcore.api.samples import Chat, Feedback, Message, Preference, Sample, Text
from ftcore.errors import RowError

INSTRUCTION, MESSAGES, SHAREGPT, COMPLETION, TEXT = FORMATS
SPECIAL = {"response", "chosen", "rejected", "kto_tag"}
OF_KIND = {
    "Chat": {"response"},
    "Prompt": set(),
    "Preference": {"chosen", "rejected"},
    "Feedback": {"response", "kto_tag"},
}


def read(format_: Any, row: dict[str, Any], kind: str = "Chat", **names: str) -> Sample:
    """The row as the data layer has it read for this kind; ``names`` are columns of another name."""
    columns = {role: name for role, name in format_.columns.items() if role not in SPECIAL - OF_KIND[kind]}
    sample: Sample = format_.read(row, columns | names, format_.tags)
    return sample


def user(text: str) -> Message:
    return Message("user", text)


def says(text: str) -> Message:
    return Message("assistant", text)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {"name": "weather", "parameters": {"type": "object"}}
CALLS = '[{"name": "weather", "arguments": {"at": "a"}}, {"name": "weather", "arguments": "{\\"at\\": 1}"}]'
TOOLS = ({"type": "function", "function": WEATHER},)


def test_sharegpt() -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {
                "from": "function_call",
                "value": CALLS,
            },
            {"from": "observation", "value": "[1, 2]"},
            {"from": "gpt", "value": "r"},
            {"from": "human", "value": "t"},
            {"from": "function_call", "value": '{"name": "weather"}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "u"},
        ],
        "system": "",
        "tools": '[{"name": "weather", "parameters": {"type": "object"}}]',
    }
    assert read(SHAREGPT, row) == Chat(
        messages=(
            Message("system", "s"),
            user("q"),
            Message("assistant", "", tool_calls=(call("weather", at="a"), call("weather", at=1))),
            Message("tool", "[1, 2]"),
            says("r"),
            user("t"),
            Message("assistant", "", tool_calls=(call("weather"),)),
            Message("tool", "3"),
            says("u"),
        ),
        tools=TOOLS,
    )


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        list(TOOLS),
        '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]',
        ['{"name": "weather", "parameters": {"type": "object"}}'],
    ],
)
def test_tools_in_every_shape(tools: Any) -> None:
    for format_, row in (
        (SHAREGPT, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}),
        (INSTRUCTION, {"instruction": "q", "output": "r"}),
        (COMPLETION, {"prompt": "q", "completion": "r"}),
    ):
        assert read(format_, row | {"tools": tools}) == Chat((user("q"), says("r")), tools=TOOLS)


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]"])
def test_no_tools(tools: Any) -> None:
    assert read(INSTRUCTION, {"instruction": "q", "output": "r", "tools": tools}) == Chat((user("q"), says("r")))


def test_a_thought_before_a_call() -> None:
    value = '<think>\nwhich one?\n</think>\n\n{"name": "weather", "arguments": {}}'
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    chat = read(SHAREGPT, {"conversations": turns})
    assert isinstance(chat, Chat)
    assert chat.messages[1] == Message("assistant", "", reasoning="which one?", tool_calls=(call("weather"),))


def test_history_alone() -> None:
    row = {"history": [["a", "b"], ["c", "d"]], "input": "q", "output": "r"}
    turns = (user("a"), says("b"), user("c"), says("d"), user("q"))
    assert read(INSTRUCTION, row) == Chat((*turns, says("r")))
    assert read(INSTRUCTION, row, "Prompt") == Chat(turns)


TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
ANSWER = {"role": "assistant", "content": "r"}


@pytest.mark.parametrize(
    ("row", "kind", "expected"),
    [
        ({"prompt": "q", "completion": "r"}, "Chat", Chat((user("q"), says("r")))),
        (
            {"prompt": "q", "completion": "r", "system": "s"},
            "Chat",
            Chat((Message("system", "s"), user("q"), says("r"))),
        ),
        ({"prompt": TURNS, "completion": [ANSWER]}, "Chat", Chat((Message("system", "s"), user("q"), says("r")))),
        ({"prompt": TURNS, "completion": ANSWER}, "Chat", Chat((Message("system", "s"), user("q"), says("r")))),
        ({"prompt": TURNS}, "Prompt", Chat((Message("system", "s"), user("q")))),
        (
            {"prompt": "q", "completion": "r", "kto_tag": False},
            "Feedback",
            Feedback(Chat((user("q"), says("r"))), False),
        ),
        (
            {"prompt": "q", "chosen": "r", "rejected": "t"},
            "Preference",
            Preference(Chat((user("q"),)), says("r"), says("t")),
        ),
        (
            {"prompt": None, "chosen": [*TURNS, ANSWER], "rejected": [*TURNS, ANSWER | {"content": "t"}]},
            "Preference",
            Preference(Chat((Message("system", "s"), user("q"))), says("r"), says("t")),
        ),
        (
            {"prompt": TURNS, "chosen": [*TURNS, ANSWER], "rejected": "t"},
            "Preference",
            Preference(Chat((Message("system", "s"), user("q"))), says("r"), says("t")),
        ),
    ],
)
def test_completion(row: dict[str, Any], kind: str, expected: Sample) -> None:
    assert read(COMPLETION, row, kind) == expected


def test_text() -> None:
    assert TEXT.read({"text": " a\n"}, TEXT.columns, {}) == Text(" a\n")


def test_preferences_keep_what_the_prompt_has() -> None:
    row = {"conversations": [{"from": "human", "value": "<image>q"}], "chosen": "c", "rejected": "d", "images": "a.jpg"}
    row |= {"system": "s", "tools": [WEATHER]}
    prompt = Chat((Message("system", "s"), user("<image>q")), TOOLS, ("a.jpg",))
    assert read(SHAREGPT, row, "Preference") == Preference(prompt, says("c"), says("d"))


def test_marks() -> None:
    row = {"instruction": "q", "output": "r", "liked": True}
    assert read(INSTRUCTION, row, "Feedback", kto_tag="liked") == Feedback(Chat((user("q"), says("r"))), True)
    turns = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "kto_tag": " False "}
    assert read(SHAREGPT, turns, "Feedback") == Feedback(Chat((user("q"), says("r"))), False)


def test_media() -> None:
    row = {"instruction": "<image>q<video>", "output": "r", "images": ["a", "b"], "videos": None, "audios": ""}
    assert read(INSTRUCTION, row) == Chat((user("<image>q<video>"), says("r")), images=("a", "b"))
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "q"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "r"}]
    assert read(MESSAGES, {"messages": turns, "images": ["a"]}) == Chat((user("<image>q"), says("r")), images=("a",))


def test_columns_without_a_name_are_not_there() -> None:
    row = {"instruction": "q", "input": "i", "output": "r", "system": "s", "history": [["a", "b"]]}
    assert read(INSTRUCTION, row, query="", system="", history="") == Chat((user("q"), says("r")))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": ""}, "completion is empty: there is nothing to train on"),
        ({"prompt": "q", "completion": 3}, "completion is a number, not a string"),
        ({"prompt": "q", "completion": [{"role": "user", "content": "r"}]}, "role 'user' follows 'user'"),
        ({"prompt": None, "completion": "r"}, "prompt is null"),
        ({"prompt": 3, "completion": "r"}, "prompt is a number, not a list"),
    ],
)
def test_completion_mistakes(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read(COMPLETION, row)
    assert caught.value.reason == reason
    assert caught.value.cure
