"""The built-in formats: whole samples, and every mistake with its message."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ft_plugins.formats import FORMATS
from ftcore.api.samples import Chat, Message
from ftcore.errors import RowError

INSTRUCTION, MESSAGES, SHAREGPT, COMPLETION, TEXT = FORMATS
ROLES_OF = {
    "Chat": {"response"},
    "Prompt": set(),
    "Preference": {"chosen", "rejected"},
    "Feedback": {"response", "kto_tag"},
}


def read(format_: Any, row: dict[str, Any], columns: Any = None, tags: Any = None, kind: str = "Chat") -> Any:
    special = {"response", "chosen", "rejected", "kto_tag"} - ROLES_OF[kind]
    named = {**format_.columns, **(columns or {})}
    return format_.read(
        row, {role: name for role, name in named.items() if role not in special}, {**format_.tags, **(tags or {})}
    )


def wrong(format_: Any, row: dict[str, Any], **more: Any) -> tuple[str, Any, str, str]:
    with pytest.raises(RowError) as caught:
        read(format_, row, **more)
    return caught.value.field, caught.value.value, caught.value.reason, caught.value.cure


def chat(*turns: tuple[str, str]) -> Chat:
    return Chat(messages=tuple(Message(role, content) for role, content in turns))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "output": "b"}, chat(("user", "a"), ("assistant", "b"))),
        ({"instruction": "a", "input": "i", "output": "b"}, chat(("user", "a\ni"), ("assistant", "b"))),
        ({"instruction": "a", "input": "", "output": " b "}, chat(("user", "a"), ("assistant", " b "))),
        ({"input": "i", "output": "b", "id": 7}, chat(("user", "i"), ("assistant", "b"))),
        ({"instruction": None, "input": "i", "output": "b"}, chat(("user", "i"), ("assistant", "b"))),
        (
            {"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"], ["t", ""]]},
            chat(
                ("system", "s"),
                ("user", "q"),
                ("assistant", "r"),
                ("user", "t"),
                ("assistant", ""),
                ("user", "a"),
                ("assistant", "b"),
            ),
        ),
        ({"instruction": "a", "output": "b", "system": "", "history": None}, chat(("user", "a"), ("assistant", "b"))),
    ],
)
def test_instruction(row: dict[str, Any], expected: Chat) -> None:
    assert read(INSTRUCTION, row) == expected


def test_instruction_with_other_columns() -> None:
    row = {"question": "a", "answer": "b", "input": "i"}
    columns = {"prompt": "question", "response": "answer"}
    assert read(INSTRUCTION, row, columns) == chat(("user", "a\ni"), ("assistant", "b"))


ANSWER = "write the answer in output, or remove the row"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "x": 1}, ("output", None, "the row has no output: it has instruction, x", ANSWER)),
        (
            {},
            (
                "instruction",
                None,
                "instruction and input are both missing or empty",
                "write the question in instruction",
            ),
        ),
        ({"instruction": "a", "output": None}, ("output", None, "output is null", ANSWER)),
        (
            {"instruction": "a", "output": " \n"},
            ("output", " \n", "output is empty: there is nothing to train on", ANSWER),
        ),
        (
            {"instruction": "a", "output": 5},
            ("output", 5, "output is a number, not a string", 'write it in quotes: "5"'),
        ),
        (
            {"instruction": ["a"], "output": "b"},
            ("instruction", ["a"], "instruction is a list, not a string", "write a string"),
        ),
        (
            {"instruction": "a", "output": "b", "history": "q"},
            ("history", "q", "history is a string, not a list", "write a list: [...]"),
        ),
        (
            {"instruction": "a", "output": "b", "history": [["q"]]},
            ("history[0]", ["q"], "history[0] is not a pair", 'write ["question", "answer"]'),
        ),
        (
            {"instruction": "a", "output": "b", "history": [["q", None]]},
            ("history[0][1]", None, "history[0][1] is null, not a string", "write a string"),
        ),
    ],
)
def test_instruction_mistakes(row: dict[str, Any], expected: Any) -> None:
    assert wrong(INSTRUCTION, row) == expected


@pytest.mark.parametrize(
    ("columns", "fits"),
    [
        ({"instruction", "output"}, ["instruction"]),
        ({"input", "output", "history"}, ["instruction"]),
        ({"messages", "tools"}, ["messages"]),
        ({"instruction"}, ["instruction"]),
        ({"input", "chosen", "rejected"}, ["instruction"]),
        ({"output"}, []),
        ({"input"}, []),
        ({"text"}, ["text"]),
        ({"instruction", "output", "text"}, ["instruction", "text"]),
        ({"conversations", "chosen"}, ["sharegpt"]),
        ({"prompt"}, ["completion"]),
        ({"chosen", "rejected", "score"}, ["completion"]),
        ({"chosen"}, []),
    ],
)
def test_which_columns_fit(columns: set[str], fits: list[str]) -> None:
    assert [one.name for one in FORMATS if one.matches(frozenset(columns))] == fits


def turns(*pairs: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_messages() -> None:
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": "r", "reasoning_content": "because", "train": False},
            {"role": "user", "content": ""},
            {"role": "assistant", "content": "t", "weight": 0.5},
            {"role": "user", "content": "v"},
            {"role": "assistant", "content": "", "loss": 0},
        ]
    }
    assert read(MESSAGES, row) == Chat(
        messages=(
            Message("system", "s"),
            Message("user", "ab"),
            Message("assistant", "r", reasoning="because", train=0.0),
            Message("user", ""),
            Message("assistant", "t", train=0.5),
            Message("user", "v"),
            Message("assistant", "", train=0.0),
        )
    )


def test_tools_and_their_calls() -> None:
    function = {"name": "f", "parameters": {}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call, {"name": "f", "arguments": None}]},
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "r"},
        ],
        "tools": '[{"name": "f", "parameters": {}}]',
        "system": "s",
    }
    assert read(MESSAGES, row) == Chat(
        messages=(
            Message("system", "s"),
            Message("user", "q"),
            Message(
                "assistant",
                "",
                tool_calls=(
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                    {"type": "function", "function": {"name": "f", "arguments": {}}},
                ),
            ),
            Message("tool", "1"),
            Message("tool", "2"),
            Message("assistant", "r"),
        ),
        tools=({"type": "function", "function": function},),
    )


def test_tags_describe_other_shapes() -> None:
    tags = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
    }
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "r"},
        ]
    }
    assert read(MESSAGES, row, {"messages": "conversations"}, tags).messages == (
        Message("user", "q"),
        Message("assistant", "", tool_calls=({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},)),
        Message("tool", "1"),
        Message("assistant", "r"),
    )


ROLES = "roles here: system, user, assistant, tool, function_call"
WEIGHT = "write true, false or a number of at least 0"
TURNS = "write at least a question and its answer"
PART = 'supported: {"type": "text", "text": ...}, and {"type": "image"} with the file in images'
CALL = 'write {"type": "function", "function": {"name": ..., "arguments": {...}}}'


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, ("messages", None, "messages is null", "write the conversation in messages")),
        ("x", ("messages", "x", "messages is a string, not a list", "write a list: [...]")),
        ([], ("messages", None, "messages has no turns", TURNS)),
        (turns(("system", "s")), ("messages", None, "messages has no turns", TURNS)),
        (["x"], ("messages[0]", "x", "messages[0] is a string, not an object", 'write {"role": ..., "content": ...}')),
        (turns(("bot", "x")), ("messages[0].role", "bot", "unknown role 'bot'", ROLES)),
        ([{"content": "x"}], ("messages[0].role", None, "messages[0] has no role", ROLES)),
        (
            turns(("assistant", "x")),
            ("messages[0].role", "assistant", "role 'assistant' comes first", "allowed here: system or user"),
        ),
        (
            turns(("user", "x"), ("user", "y")),
            ("messages[1].role", "user", "role 'user' follows 'user'", "allowed here: assistant"),
        ),
        (
            turns(("user", "x"), ("assistant", "y"), ("assistant", "z")),
            (
                "messages[2].role",
                "assistant",
                "role 'assistant' follows 'assistant'",
                "allowed here: user or tool",
            ),
        ),
        (
            turns(("user", "x"), ("assistant", "y"), ("system", "z")),
            ("messages[2].role", "system", "role 'system' follows 'assistant'", "allowed here: user or tool"),
        ),
        (
            turns(("user", None)),
            (
                "messages[0].content",
                None,
                "messages[0].content is null or missing",
                'write a string; "" if it is empty',
            ),
        ),
        (
            turns(("user", 3)),
            ("messages[0].content", 3, "messages[0].content is a number, not a string", 'write it in quotes: "3"'),
        ),
        (
            turns(("user", [{"type": "image", "url": "x"}])),
            (
                "messages[0].content[0]",
                {"type": "image", "url": "x"},
                "messages[0].content[0] is not a text part",
                PART,
            ),
        ),
        (
            turns(("user", "x"), ("assistant", " ")),
            (
                "messages[1].content",
                " ",
                "messages[1].content is empty: there is nothing to train on",
                "write the answer, or remove the row",
            ),
        ),
        (
            [{"role": "user", "content": "x", "weight": -1}],
            ("messages[0].weight", -1, "messages[0].weight is not a weight", WEIGHT),
        ),
        (
            [{"role": "user", "content": "x", "train": "no"}],
            ("messages[0].train", "no", "messages[0].train is not a weight", WEIGHT),
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"x": 1}]}],
            ("messages[0].tool_calls[0]", {"x": 1}, "messages[0].tool_calls[0] is not a function call", CALL),
        ),
        (
            [{"role": "function_call", "content": "f(x)"}],
            (
                "messages[0].content",
                "f(x)",
                "messages[0].content is not JSON: Expecting value: line 1 column 1 (char 0)",
                "write it as JSON",
            ),
        ),
    ],
)
def test_messages_mistakes(messages: Any, expected: Any) -> None:
    assert wrong(MESSAGES, {"messages": messages}) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner),
    max_leaves=8,
)
COLUMNS = (
    "instruction input output history system messages tools conversations text images image videos audio "
    "prompt completion chosen rejected"
)
keys = st.sampled_from([*COLUMNS.split(), "kto_tag"])
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "x"]) | json_values, "content": json_values},
    optional={"train": json_values, "tool_calls": json_values, "reasoning": json_values},
)


@pytest.mark.slow
@example({"messages": [{"role": "user", "content": [{"type": []}]}]}, "Chat")  # a type that cannot be hashed
@given(st.dictionaries(keys, json_values | st.lists(turn, max_size=4)), st.sampled_from(list(ROLES_OF)))
def test_any_row_is_a_sample_or_a_row_error(row: dict[str, Any], kind: str) -> None:
    for format_ in FORMATS:
        error, roles = None, []
        try:
            sample = read(format_, row, kind=kind)
        except RowError as caught:
            error = caught
        else:
            chat = getattr(sample, "prompt", getattr(sample, "chat", sample))
            messages = chat.messages if isinstance(chat, Chat) else ()
            assert all(isinstance(message.content, str) for message in messages)
            roles = [message.role for message in messages]
        assert error is None or (error.reason and error.field and error.cure)
        assert "system" not in roles[1:]
        assert not any(left == right == "user" for left, right in pairwise(roles))
