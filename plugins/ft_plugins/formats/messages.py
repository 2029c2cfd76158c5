"""Conversations as lists of turns; which keys hold role and text, and what the roles are called, is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft_plugins.formats.fields import items, kind_of, optional_text, parsed, required
from ft_plugins.formats.turns import check_turns, read_turn
from ftcore.components import DatasetFormat
from ftcore.errors import RowError
from ftcore.samples import Chat, Message


@dataclass(frozen=True, kw_only=True)
class Conversation(DatasetFormat):
    """A column with a list of turns, beside it optionally ``system`` and ``tools``.

    A turn's own ``train``, ``loss`` or ``weight`` is its weight in the loss: false or 0 leaves it out.
    """

    def matches(self, columns: frozenset[str]) -> bool:
        """The column of turns is there."""
        return self.columns["messages"] in columns

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Chat:
        """The row as a conversation, user and assistant strictly in turn."""
        column = columns["messages"]
        turns = items(required(row, column, f"write the conversation in {column}"), column)
        messages = [read_turn(turn, f"{column}[{number}]", tags) for number, turn in enumerate(turns)]
        check_turns(messages, column, tags)
        if (system := optional_text(row, columns["system"])) and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        return Chat(messages=tuple(messages), tools=_tools(row, columns["tools"]))


def _tools(row: Mapping[str, Any], column: str) -> tuple[Mapping[str, Any], ...]:
    """The tools in OpenAI's shape; a bare function, and JSON in a text, are taken too."""
    found = parsed(row.get(column) or "[]", column)
    tools = []
    for number, tool in enumerate(items(found, column)):
        place = f"{column}[{number}]"
        if not isinstance(tool, Mapping) or not ("function" in tool or "name" in tool):
            cure = 'write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
            raise RowError(f"{place} is {kind_of(tool)} that describes no function", field=place, value=tool, cure=cure)
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(tools)


messages = Conversation(
    name="messages",
    summary="messages: a list of {role, content} (OpenAI); with optional tools",
    aliases=("openai",),
    columns={"messages": "messages", "system": "system", "tools": "tools"},
    tags={
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
        "observation_tag": "tool",
        "function_tag": "function_call",
    },
)
