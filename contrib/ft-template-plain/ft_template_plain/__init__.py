"""The chat template ``plain-dialogue``: headings in plain words, for base models without control tokens."""

from pathlib import Path

from ftcore import hookimpl
from ftcore.api.components import ChatTemplate


@hookimpl
def ft_chat_templates() -> list[ChatTemplate]:
    """One template; the tokenizer's own end of text ends the model's turn."""
    return [
        ChatTemplate(
            name="plain-dialogue",
            summary="### System:, ### User:, ### Assistant: and the tokenizer's end of text",
            path=Path(__file__).with_name("plain-dialogue.jinja"),
        )
    ]
