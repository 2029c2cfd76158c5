"""Caches the text between messages, to locate messages in conversations of the same layout.

Without the cache, a conversation is rendered twice, the second time with sentinels around messages. That doubles the
cost. A conversation of a known layout is compared with the cached text instead (3 us).
"""

from __future__ import annotations

from collections.abc import Sequence

Place = tuple[int, int, int]
"""start, end, message."""

_MOST = 1000
"""Number of layouts in the cache."""


class LayoutCache:
    """Maps the layout of a conversation to the pieces of its text."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], list[tuple[str, int]]] = {}

    def learn(self, text: str, said: Sequence[tuple[int, int]], bodies: Sequence[str], places: Sequence[Place]) -> None:
        """Adds the layout of a conversation, if every message was located.

        Args:
            text: the rendered conversation.
            said: spans of the assistant's text, in order.
            bodies: the content of each other message, empty for the assistant's. The template may strip white space.
            places: spans of these contents in the text.
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
        """The places, if the text matches a cached layout; otherwise None."""
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
    """Leading and trailing white space, which templates may strip; without any, whether the text is non-empty."""
    inside = body.strip()
    if len(inside) == len(body):
        return bool(body)
    return body[: len(body) - len(body.lstrip())], body[len(body.rstrip()) :]
