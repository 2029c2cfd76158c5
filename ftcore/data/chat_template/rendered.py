"""A conversation as text, with what the model says in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftcore.api.samples import Message

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a text, and the message that they come from."""

    start: int
    end: int
    message: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Args:
        text: what is tokenised.
        messages: the turns, a default system message included.
        said: what the model says, ends of turns included.
        read: contents of the other messages; those that the template alters are not found.
        literal: control tokens in contents, ``(start, end)``: they are encoded as text.
        images: paths of the images whose tokens are in the text.
        lost: numbers of answers that were given with a thought which is not in the text.
    """

    text: str
    messages: tuple[Message, ...]
    said: tuple[Span, ...] = ()
    read: tuple[Span, ...] = ()
    literal: tuple[tuple[int, int], ...] = ()
    images: tuple[str, ...] = ()
    lost: tuple[int, ...] = ()
