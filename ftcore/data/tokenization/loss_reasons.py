"""Why a token is trained or not."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """One per token, kept as uint8."""

    TEMPLATE = 0
    """Written by the template: headers, separators, the end of turns that the model reads."""
    SYSTEM = 1
    """The system message."""
    USER = 2
    """What the user says."""
    TOOL = 3
    """What a tool answers."""
    HISTORY = 4
    """An answer that is only read: ``mask_history``, or the turn's own ``train: false``."""
    TRUNCATED = 5
    """Beyond ``cutoff_len``: the model does not see it."""
    ASSISTANT = 6
    """An answer."""
    END_OF_TURN = 7
    """The token that ends an answer, or a document."""
    TEXT = 8
    """Raw text."""

    @property
    def label(self) -> str:
        """The name that is shown, such as ``end-of-turn``."""
        return self.name.lower().replace("_", "-")
