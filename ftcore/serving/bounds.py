"""Size limits of a request's conversation, checked before it is rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.api.option_groups import ServingOptions
from ftcore.serving.http_errors import ApiError

CHARACTERS = 16
"""Characters per token of the model's context: text has 4 to 5, code with much white space 10."""
TOKENS = 2
"""Tokens of an empty message: the start and end of a turn."""
UNKNOWN = 4096
"""Limit of messages if the context length is unknown."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Size limits of a conversation.

    Args:
        messages: number of turns.
        chars: number of characters of turns and tools.
    """

    messages: int
    chars: int

    @classmethod
    def of(cls, options: ServingOptions, context: int | None) -> Bounds:
        """Limits from the options; unset ones follow from the model's context length.

        Args:
            options: options of the server.
            context: context length in tokens; None if unknown.
        """
        messages = max(context // TOKENS, 1) if context else UNKNOWN
        chars = context * CHARACTERS if context else options.serve_max_body
        return cls(options.serve_max_messages or messages, options.serve_max_chars or chars)

    def check(self, found: Any, where: str = "") -> None:
        """Checks the size of an object with `messages` and `tools`, before its validation.

        Args:
            found: the parsed JSON.
            where: path to the object in the request, such as ``conversations.0.``.

        Raises:
            ApiError: with the exceeded limit.
        """
        if not isinstance(found, Mapping):
            return
        messages = found.get("messages")
        if isinstance(messages, list) and len(messages) > self.messages:
            reason = f"{where}messages: {len(messages)} messages exceed the limit of {self.messages}"
            raise ApiError(400, f"{reason} (serve_max_messages)", param=f"{where}messages")
        size = size_of([messages, found.get("tools")], self.chars)
        if size > self.chars:
            reason = f"{where}messages: the text exceeds the limit of {self.chars} characters"
            raise ApiError(400, f"{reason} (serve_max_chars)", param=f"{where}messages")


@dataclass(frozen=True, slots=True)
class BoundsOf:
    """Maps a request's JSON to the limits of its model; an unknown model has those of the first.

    Args:
        served: name -> limits; at least one.
    """

    served: Mapping[str, Bounds]

    def __call__(self, found: Any) -> Bounds:
        """See above."""
        name = found.get("model") if isinstance(found, Mapping) else None
        known = self.served.get(name) if isinstance(name, str) else None
        return known or next(iter(self.served.values()))


def size_of(value: Any, limit: int) -> int:
    """The characters of all strings in a JSON value, plus one per other value; counted up to the limit."""
    size, left = 0, [value]
    while left and size <= limit:
        one = left.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, Mapping):
            size += sum(map(len, one))
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
        else:
            size += 1
    return size
