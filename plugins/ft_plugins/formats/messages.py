"""messages: lists of role and content, in OpenAI's format."""

from __future__ import annotations

from ft_plugins.formats.conversation import COLUMNS, Conversation
from ft_plugins.formats.turns import OPENAI

messages = Conversation(
    name="messages",
    summary="messages: a list of {role, content} (OpenAI); with optional tools",
    aliases=("openai",),
    columns={"messages": "messages", **COLUMNS},
    tags=OPENAI,
)
