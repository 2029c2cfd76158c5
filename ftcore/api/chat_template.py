"""The kind of component that renders conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcore.api.component import Component, Harmless


@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Component):
    """One Jinja source with ``{% generation %}`` marks around what the model says, its end-of-turn included.

    It makes the training mask, the prompt at inference and the ``chat_template`` saved with the tokenizer.

    Args:
        path: the Jinja file; or
        text: the source itself.
        stop: what ends the model's turn, the first being the one that training teaches.
        default_system: the system message that the template writes when the conversation has none.
        tool_dialect: how tools are offered and called, such as ``json`` or ``xml``; None where the model has no tools.
        thinking: whether the template renders ``reasoning_content``.
    """

    kind = "chat_template"
    option = "template"
    resume_harmless = Harmless("the template's text and the rows that follow from it are compared")

    path: Path | None = None
    text: str = ""
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    tool_dialect: str | None = None
    thinking: bool = False

    def source(self) -> str:
        """The Jinja source."""
        return self.path.read_text(encoding="utf-8") if self.path else self.text
