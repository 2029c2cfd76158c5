"""How large a conversation of a request may be; looked at before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.api.option_groups import ServingOptions
from ftcore.serving.http_errors import ApiError

CHARACTERS = 16
"""For each token that the model has a place for: text has 4 or 5, code that is mostly blanks 10."""
TOKENS = 2
"""Of a message without a word: a template begins a turn, or ends it."""
UNKNOWN = 4096
"""Messages of a model of which nobody knows how much it can read."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a conversation may have.

    Args:
        messages: turns.
        chars: characters of turns and tools.
    """

    messages: int
    chars: int

    @classmethod
    def of(cls, options: ServingOptions, context: int | None) -> Bounds:
        """What the options say; unset, what a model of so many tokens can read at most.

        Args:
            options: of the server.
            context: tokens of prompt and answer; None where it is not known.
        """
        messages = max(context // TOKENS, 1) if context else UNKNOWN
        chars = context * CHARACTERS if context else options.serve_max_body
        return cls(options.serve_max_messages or messages, options.serve_max_chars or chars)

    def check(self, found: Any, where: str = "") -> None:
        """Refuses an object of `messages` and `tools` as it came in; what else is wrong with it is found later.

        Args:
            found: JSON.
            where: what leads to it in the request, such as ``conversations.0.``.

        Raises:
            ApiError: naming the bound.
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
    """Called with a request's JSON gives the bounds of the model that it names; of any where there is no such.

    Args:
        served: name -> bounds; at least one.
    """

    served: Mapping[str, Bounds]

    def __call__(self, found: Any) -> Bounds:
        """See above."""
        name = found.get("model") if isinstance(found, Mapping) else None
        known = self.served.get(name) if isinstance(name, str) else None
        return known or next(iter(self.served.values()))


def size_of(value: Any, limit: int) -> int:
    """Characters of all texts in a value of JSON's kinds, and one for each other value; counted until the limit."""
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
