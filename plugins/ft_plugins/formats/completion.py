"""prompt, completion, chosen, rejected: texts or lists of turns, as in TRL's dataset types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ft_plugins.formats.answers import BESIDE, answer_text, feedback, media, preference
from ft_plugins.formats.fields import items, optional_text, required, text
from ft_plugins.formats.tools import tools
from ft_plugins.formats.turns import OPENAI, check_turns, read_turn
from ftcore.api.components import DatasetFormat
from ftcore.api.samples import Chat, Message, Sample

_COLUMNS = {"prompt": "prompt", "response": "completion", "system": "system", "tools": "tools", **BESIDE}
_OTHERS = frozenset({"instruction", "input", "messages", "conversations"})


@dataclass(frozen=True, kw_only=True)
class Completion(DatasetFormat):
    """``{"prompt": ..., "completion": ...}`` or ``{"prompt": ..., "chosen": ..., "rejected": ...}`` (TRL).

    Prompts and answers are strings or lists of turns. Without a prompt, ``chosen`` and ``rejected`` are conversations
    with the same prompt. A string in ``prompt`` is a user message.
    """

    name: str = "completion"
    summary: str = "prompt, completion; or chosen, rejected; each a text or a list of {role, content} (TRL)"
    aliases: tuple[str, ...] = ("trl",)
    columns: Mapping[str, str] = field(default_factory=lambda: dict(_COLUMNS))
    tags: Mapping[str, str] = field(default_factory=lambda: dict(OPENAI))
    samples: tuple[str, ...] = ("Chat", "Preference", "Feedback")

    def matches(self, columns: frozenset[str]) -> bool:
        """Matches a prompt column, or ``chosen`` and ``rejected`` without one."""
        return "prompt" in columns or ({"chosen", "rejected"} <= columns and not columns & _OTHERS)

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample:
        """Reads a row as a conversation, prompt, preference or feedback."""
        messages = self._prompt(row, columns, tags)
        prompt = Chat(messages, tools(row, columns["tools"]), **media(row, columns, messages))
        if "chosen" in columns:
            return preference(prompt, row, columns, tags)
        if "response" not in columns:
            return prompt
        chat = Chat((*messages, *_answers(row, columns["response"], tags)), prompt.tools, prompt.images, prompt.videos)
        check_turns(chat.messages, columns["response"], tags)
        return feedback(chat, row, columns) if "kto_tag" in columns else chat

    def _prompt(
        self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]
    ) -> tuple[Message, ...]:
        column = columns["prompt"]
        if "chosen" in columns and not row.get(column):
            return ()
        value = required(row, column, f"write the question in {column}")
        if isinstance(value, str):
            turns = [Message("user", value)]
        else:
            turns = [read_turn(turn, f"{column}[{number}]", tags) for number, turn in enumerate(items(value, column))]
            check_turns(turns, column, tags)
        if (system := optional_text(row, columns["system"])) and turns[0].role != "system":
            turns.insert(0, Message("system", system))
        return tuple(turns)


def _answers(row: Mapping[str, Any], column: str, tags: Mapping[str, str]) -> tuple[Message, ...]:
    value = required(row, column, f"write the answer in {column}, or remove the row")
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple(read_turn(turn, f"{column}[{number}]", tags) for number, turn in enumerate(value))
    return (Message("assistant", answer_text(row, column) if isinstance(value, str) else text(value, column)),)
