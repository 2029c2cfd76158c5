"""Finds stop sequences in streamed text."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text on until a stop sequence is complete, independent of the pieces of the text.

    Text that may be the start of a sequence is held back until this is decided.

    Args:
        sequences: stop sequences; the first complete one stops.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self.sequences = tuple(sequences)
        self.found = False
        self._held = ""

    def add(self, text: str) -> str:
        """The text that can be shown now."""
        if self.found:
            return ""
        text = self._held + text
        ends = [(at + len(one), at) for one in self.sequences if (at := text.find(one)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        held = max((overlap(text, one) for one in self.sequences), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """The held-back text, at the end of the stream."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, sequence: str) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of ``sequence``."""
    longest = min(len(text), len(sequence) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(sequence[:size])), 0)
