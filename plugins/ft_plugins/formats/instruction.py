"""The Alpaca format: instruction, input and output, with earlier turns in history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ft_plugins.formats.answers import BESIDE, answer_text, feedback, media, preference
from ft_plugins.formats.fields import items, optional_text, text, unnamed
from ft_plugins.formats.tools import tools
from ft_plugins.formats.turns import OPENAI
from ftcore.api.components import DatasetFormat
from ftcore.api.samples import Chat, Message, Sample
from ftcore.errors import RowError, listed

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
    "tools": "tools",
    **BESIDE,
}


@dataclass(frozen=True, kw_only=True)
class Instruction(DatasetFormat):
    """``{"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[question, answer], ...]}``.

    The question is instruction and input, joined by a line break; one of them may be missing.
    """

    name: str = "instruction"
    summary: str = "instruction, input, output; with optional system and history"
    aliases: tuple[str, ...] = ("alpaca",)
    default: bool = True
    columns: Mapping[str, str] = field(default_factory=lambda: dict(_COLUMNS))
    samples: tuple[str, ...] = ("Chat", "Preference", "Feedback")

    def matches(self, columns: frozenset[str]) -> bool:
        """Matches an instruction column, or an input column with output, chosen or history."""
        asked = "instruction" in columns or ("input" in columns and columns & {"output", "chosen", "history"})
        return bool(asked) and not columns & {"messages", "conversations"}

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample:
        """Reads a row as a conversation, prompt, preference or feedback."""
        messages = tuple(Message(role, content) for role, content in self._turns(row, columns))
        prompt = Chat(messages, tools(row, columns["tools"]), **media(row, columns, messages))
        if "chosen" in columns:
            return preference(prompt, row, columns, OPENAI)
        if "response" not in columns:
            return prompt
        answer = Message("assistant", answer_text(row, columns["response"]))
        chat = Chat((*messages, answer), prompt.tools, prompt.images, prompt.videos)
        return feedback(chat, row, columns) if "kto_tag" in columns else chat

    def _turns(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
        if system := optional_text(row, columns["system"]):
            yield "system", system
        for question, answer in _pairs(row.get(columns["history"]), columns["history"]):
            yield "user", question
            yield "assistant", answer
        yield "user", _question(row, columns["prompt"], columns["query"])


def _question(row: Mapping[str, Any], prompt: str, query: str) -> str:
    parts = [part for part in (optional_text(row, prompt), optional_text(row, query)) if part]
    if not parts:
        names = [name for name in (prompt, query) if name]
        if not names:
            raise unnamed()
        if row and not any(name in row for name in names):
            reason = f"the row has no {' and no '.join(names)}: it has {listed(row)}"
        else:
            reason = f"{' and '.join(names)} {'are both' if len(names) > 1 else 'is'} missing or empty"
        raise RowError(reason, field=names[0], value=row.get(names[0]), cure=f"write the question in {names[0]}")
    return "\n".join(parts)


def _pairs(history: object, column: str) -> Iterator[tuple[str, str]]:
    for number, pair in enumerate(items(history or (), column)):
        place = f"{column}[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"{place} is not a pair", field=place, value=pair, cure='write ["question", "answer"]')
        yield text(pair[0], f"{place}[0]"), text(pair[1], f"{place}[1]")
