"""Where the messages that the model reads stand in a conversation's text, told from conversations of the same shape.

To be sure, a conversation is rendered twice, once with marks around what is read. That costs as much as all the rest:
once the text between the messages is known for one conversation, others are checked against it (3 us).
"""

from __future__ import annotations

from collections.abc import Sequence

Place = tuple[int, int, int]
"""start, end, message."""

_MOST = 1000
"""Shapes remembered: conversations of many lengths, with and without system messages."""


class LayoutCache:
    """Shape of a conversation -> the pieces of its text."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], list[tuple[str, int]]] = {}

    def learn(self, text: str, said: Sequence[tuple[int, int]], bodies: Sequence[str], places: Sequence[Place]) -> None:
        """Remembers a conversation, unless not every message was found.

        Args:
            text: the conversation.
            said: start and end of what the model says, in order.
            bodies: of each message what is read; empty where nothing is. Blanks at its ends are the template's.
            places: where these stand in the text.
        """
        if [message for _, _, message in places] != [number for number, body in enumerate(bodies) if body.strip()]:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        pieces, position = [], 0
        for start, end, message in sorted([(start, end, -1) for start, end in said] + list(places)):
            if start < position:
                return
            pieces.append((text[position:start], message))
            position = end
        self._known[_shape(said, bodies)] = [*pieces, (text[position:], -1)]

    def find(self, text: str, said: Sequence[tuple[int, int]], bodies: Sequence[str]) -> list[Place] | None:
        """The places, if the text is what another conversation of this shape was, but for the messages."""
        pieces = self._known.get(_shape(said, bodies))
        if pieces is None:
            return None
        places, position, spans = [], 0, iter(said)
        for literal, message in pieces[:-1]:
            if not text.startswith(literal, position):
                return None
            position += len(literal)
            if message < 0:
                start, end = next(spans)
                if start != position:
                    return None
                position = end
            else:
                body = bodies[message].strip()
                if not text.startswith(body, position):
                    return None
                places.append((position, position + len(body), message))
                position += len(body)
        return places if text[position:] == pieces[-1][0] else None


def _shape(said: Sequence[tuple[int, int]], bodies: Sequence[str]) -> tuple[object, ...]:
    return (len(said), *map(_blanks, bodies))


def _blanks(body: str) -> tuple[str, str] | bool:
    """The blanks at both ends, which templates may drop or keep; whether there is anything, where there are none."""
    inside = body.strip()
    if len(inside) == len(body):
        return bool(body)
    return body[: len(body) - len(body.lstrip())], body[len(body.rstrip()) :]
