"""The chat template ``plain-dialogue``: plain-text headings, for base models without control tokens."""

from pathlib import Path

from ftcore import hookimpl
from ftcore.api.components import ChatTemplate


@hookimpl
def ft_chat_templates() -> list[ChatTemplate]:
    """The template; answers end with the tokenizer's end-of-text token."""
    return [
        ChatTemplate(
            name="plain-dialogue",
            summary="### System:, ### User:, ### Assistant: and the tokenizer's end of text",
            path=Path(__file__).with_name("plain-dialogue.jinja"),
        )
    ]
