"""Inserts private-use characters into a conversation, to locate its parts in the rendered text.

Sentinels enclose control tokens in user content, which are encoded as text (see ``sanitize_control_tokens`` of
transformers), and the content of each message that is not the assistant's.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ftcore.errors import RowError

AREA = range(0xF0000, 0x10FFFE)
"""Both supplementary private use areas."""
_PRIVATE = re.compile(f"[{chr(AREA[0])}-{chr(AREA[-1])}]")

Conversation = list[dict[str, Any]]
"""Messages in the form that templates read."""


class Sentinels:
    """Sentinel characters that do not occur in a conversation: for control tokens, and one per message.

    Args:
        conversation, tools: the texts in which the sentinels must not occur.

    Raises:
        RowError: the texts use so many private-use characters that too few are free.
    """

    def __init__(self, conversation: Conversation, tools: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(strings([conversation, list(tools)]))
        first = _free(text, 3 + len(conversation))
        self.start, self.end, self.close = chr(first), chr(first + 1), chr(first + 2)
        self._first = first + 3
        self._places = re.compile(f"[{self.close}-{chr(self._first + len(conversation))}]")
        self._controls = re.compile(f"[{self.start}{self.end}]")

    def places(self, conversation: Conversation, *, said: bool = False) -> Conversation:
        """The conversation with sentinels around the stripped content of each message.

        The assistant's messages are included only with ``said``.
        """
        marked = []
        for number, message in enumerate(conversation):
            content = message["content"]
            if (said or message["role"] != "assistant") and (body := content.strip()):
                left = content[: len(content) - len(content.lstrip())]
                right = content[len(content.rstrip()) :]
                opening = chr(self._first + number)
                message = message | {"content": f"{left}{opening}{body}{self.close}{right}"}
            marked.append(message)
        return marked

    def find_places(self, text: str) -> tuple[str, list[tuple[int, int, int]]]:
        """The text without these sentinels, and ``(start, end, message)`` of each enclosed piece."""
        clean, found = _split(self._places, text)
        spans, opened = [], (0, -1)
        for position, mark in found:
            if mark != self.close:
                opened = (position, ord(mark) - self._first)
            elif opened[1] >= 0:
                spans.append((opened[0], position, opened[1]))
                opened = (0, -1)
        return clean, spans

    def controls(self, value: Any, tokens: re.Pattern[str]) -> Any:
        """The value with sentinels around the control tokens in its strings, including keys."""
        return mapped(value, lambda text: tokens.sub(f"{self.start}\\g<0>{self.end}", text))

    def find_controls(self, text: str) -> tuple[str, list[tuple[int, int]], Callable[[int], int]]:
        """The text without these sentinels, the enclosed spans, and a map from old to new positions."""
        clean, found = _split(self._controls, text)
        positions = [position + number for number, (position, _) in enumerate(found)]
        spans = [
            (start, end)
            for (start, opening), (end, closing) in pairwise(found)
            if opening == self.start and closing == self.end
        ]
        return clean, spans, lambda position: position - bisect_left(positions, position)


def _free(text: str, count: int) -> int:
    """The first of ``count + 1`` consecutive private-use characters that do not occur in the text."""
    used = set() if text.isascii() else set(map(ord, _PRIVATE.findall(text)))
    for first in range(AREA[0], AREA[-1] - count, count + 1):
        if not used or used.isdisjoint(range(first, first + count + 1)):
            return first
    raise RowError("the text uses all private-use characters", cure="remove the characters, or the row")


def _split(marks: re.Pattern[str], text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text without sentinels, and each sentinel with its position in that text."""
    pieces, found, last, length = [], [], 0, 0
    for match in marks.finditer(text):
        pieces.append(text[last : match.start()])
        length += match.start() - last
        found.append((length, match[0]))
        last = match.end()
    pieces.append(text[last:])
    return "".join(pieces), found


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The value with ``change`` applied to all strings."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): mapped(item, change) for key, item in value.items()}
    return [mapped(item, change) for item in value] if isinstance(value, list | tuple) else value


def control_tokens(tokenizer: Any, source: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of control tokens in other messages and in the assistant's messages.

    Special tokens of the tokenizer are control tokens in both. Other added tokens are control tokens if the template
    writes them, but not in the assistant's messages: the model generates ``<think>`` or ``<tool_call>`` as tokens.
    """
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]
    special = [token.content for token in added if token.special]
    written = [token.content for token in added if not token.special and token.content in source]
    return _any_of(special + written), _any_of(special)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) never matches
