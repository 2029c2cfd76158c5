"""Reasons why tokens are trained or not."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """The reason of a token, stored as uint8."""

    TEMPLATE = 0
    """Template text: headers, separators, and ends of turns that are not the assistant's."""
    SYSTEM = 1
    """The system message."""
    USER = 2
    """A user message."""
    TOOL = 3
    """The result of a tool."""
    HISTORY = 4
    """An answer that is not trained: ``mask_history``, or ``train: false`` of the turn."""
    TRUNCATED = 5
    """A token beyond ``cutoff_len``."""
    ASSISTANT = 6
    """An answer."""
    END_OF_TURN = 7
    """The token that ends an answer or a document."""
    TEXT = 8
    """Raw text."""

    @property
    def label(self) -> str:
        """The displayed name, such as ``end-of-turn``."""
        return self.name.lower().replace("_", "-")
