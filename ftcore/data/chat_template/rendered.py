"""A rendered conversation with the spans of the assistant's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftcore.api.samples import Message

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a text, and the index of their message."""

    start: int
    end: int
    message: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation.

    Args:
        text: the text to tokenise.
        messages: the turns, including a default system message.
        said: spans of the assistant's text, including ends of turns.
        read: spans of the other messages' contents, unless the template changes them.
        literal: ``(start, end)`` of control tokens in contents, which are encoded as text.
        images: paths of the images whose tokens are in the text.
        lost: indices of answers whose reasoning is not in the text.
    """

    text: str
    messages: tuple[Message, ...]
    said: tuple[Span, ...] = ()
    read: tuple[Span, ...] = ()
    literal: tuple[tuple[int, int], ...] = ()
    images: tuple[str, ...] = ()
    lost: tuple[int, ...] = ()
