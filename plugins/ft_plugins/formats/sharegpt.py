"""conversations: lists of from and value, in the ShareGPT format."""

from __future__ import annotations

from ft_plugins.formats.conversation import COLUMNS, Conversation

sharegpt = Conversation(
    name="sharegpt",
    summary="conversations: a list of {from, value}; human, gpt, observation, function_call, system",
    columns={"messages": "conversations", **COLUMNS},
    tags={
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
)
