"""instruction, input, output: one question and its answer (the Alpaca format)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ft_plugins.formats.fields import items, optional_text, required, text
from ftcore.components import DatasetFormat
from ftcore.errors import RowError
from ftcore.samples import Chat, Message

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
}


@dataclass(frozen=True, kw_only=True)
class Instruction(DatasetFormat):
    """``{"instruction": ..., "input": ..., "output": ..., "system": ..., "history": [[question, answer], ...]}``.

    The question is instruction and input, joined by a line break; one of the two is enough.
    """

    name: str = "instruction"
    summary: str = "instruction, input, output; with optional system and history"
    aliases: tuple[str, ...] = ("alpaca",)
    columns: Mapping[str, str] = field(default_factory=lambda: dict(_COLUMNS))

    def matches(self, columns: frozenset[str]) -> bool:
        """An output, and instruction or input beside it."""
        return "output" in columns and bool(columns & {"instruction", "input"}) and not columns & {"messages"}

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Chat:
        """The row as a conversation; every answer in it is the assistant's."""
        messages = [Message(role, content) for role, content in self._turns(row, columns)]
        return Chat(messages=tuple(messages))

    def _turns(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
        if system := optional_text(row, columns["system"]):
            yield "system", system
        for question, answer in _pairs(row.get(columns["history"]), columns["history"]):
            yield "user", question
            yield "assistant", answer
        yield "user", _question(row, columns["prompt"], columns["query"])
        yield "assistant", _answer(row, columns["response"])


def _question(row: Mapping[str, Any], prompt: str, query: str) -> str:
    parts = [part for part in (optional_text(row, prompt), optional_text(row, query)) if part]
    if not parts:
        reason = f"{prompt} and {query} are both missing or empty"
        raise RowError(reason, field=prompt, value=row.get(prompt), cure=f"write the question in {prompt}")
    return "\n".join(parts)


def _answer(row: Mapping[str, Any], column: str) -> str:
    cure = f"write the answer in {column}, or remove the row"
    answer = text(required(row, column, cure), column)
    if not answer.strip():
        raise RowError(f"{column} is empty: there is nothing to learn", field=column, value=answer, cure=cure)
    return answer


def _pairs(history: object, column: str) -> Iterator[tuple[str, str]]:
    for number, pair in enumerate(items(history or (), column)):
        place = f"{column}[{number}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"{place} is not a pair", field=place, value=pair, cure='write ["question", "answer"]')
        yield text(pair[0], f"{place}[0]"), text(pair[1], f"{place}[1]")
