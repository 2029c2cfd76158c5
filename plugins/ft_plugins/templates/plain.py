"""Templates made of plain text, such as ``USER: ... ASSISTANT: ...``."""

from __future__ import annotations

from ftcore.components import ChatTemplate

TEMPLATES: tuple[ChatTemplate, ...] = ()
