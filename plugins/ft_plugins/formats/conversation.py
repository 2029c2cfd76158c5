"""Conversations as lists of turns, with configurable keys and role names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft_plugins.formats.answers import BESIDE, feedback, media, preference
from ft_plugins.formats.fields import items, optional_text, required
from ft_plugins.formats.tools import tools
from ft_plugins.formats.turns import check_turns, read_turn
from ftcore.api.components import DatasetFormat
from ftcore.api.samples import Chat, Message, Sample

COLUMNS = {"system": "system", "tools": "tools", **BESIDE}
"""Columns next to the turns."""


@dataclass(frozen=True, kw_only=True)
class Conversation(DatasetFormat):
    """A column with a list of turns, and optional columns ``system`` and ``tools``.

    ``train``, ``loss`` or ``weight`` of a turn is its loss weight: false or 0 excludes it.
    """

    samples: tuple[str, ...] = ("Chat", "Preference", "Feedback")

    def matches(self, columns: frozenset[str]) -> bool:
        """Matches the column of turns."""
        return self.columns["messages"] in columns

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> Sample:
        """Reads a row as a conversation, in which user and assistant must alternate."""
        column = columns["messages"]
        turns = items(required(row, column, f"write the conversation in {column}"), column)
        messages = [read_turn(turn, f"{column}[{number}]", tags) for number, turn in enumerate(turns)]
        check_turns(messages, column, tags)
        if (system := optional_text(row, columns["system"])) and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        chat = Chat(tuple(messages), tools(row, columns["tools"]), **media(row, columns, messages))
        if "chosen" in columns:
            return preference(chat, row, columns, tags)
        return feedback(chat, row, columns) if "kto_tag" in columns else chat
