"""Stop sequences in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text on, until one of some sequences is complete; the cut is the same however the text comes in pieces.

    Text that may be the beginning of a sequence is held back until it is decided.

    Args:
        sequences: what stops; the one that is complete first counts.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self.sequences = tuple(sequences)
        self.found = False
        self._held = ""

    def add(self, text: str) -> str:
        """What may be shown now."""
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
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, sequence: str) -> int:
    """Length of the longest end of ``text`` that ``sequence`` begins with, less than the whole of it."""
    longest = min(len(text), len(sequence) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(sequence[:size])), 0)
