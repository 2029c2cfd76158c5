"""The kind of component that renders conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ftcore.api.component import Component, Harmless


@dataclass(frozen=True, kw_only=True)
class ChatTemplate(Component):
    """A Jinja template with ``{% generation %}`` marks around the model's output, its end of turn included.

    The same template gives the training mask, the prompt at inference and the ``chat_template`` saved with the
    tokenizer.

    Args:
        path: the Jinja file; or
        text: the source itself.
        stop: texts that end the model's turn; the first one is trained.
        default_system: the system message that the template writes if the conversation has none.
        tool_dialect: format of tools and calls, such as ``json`` or ``xml``; None for models without tools.
        thinking: whether the template renders ``reasoning_content``.
    """

    kind = "chat_template"
    option = "template"
    resume_harmless = Harmless("the template's text and the resulting rows are compared")

    path: Path | None = None
    text: str = ""
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    tool_dialect: str | None = None
    thinking: bool = False

    def source(self) -> str:
        """The Jinja source."""
        return self.path.read_text(encoding="utf-8") if self.path else self.text
