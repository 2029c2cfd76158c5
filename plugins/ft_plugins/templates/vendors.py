"""Templates with a maker's own control tokens: Llama, GLM, Mistral, Gemma, DeepSeek and others."""

from __future__ import annotations

from ft_plugins.templates.table import template
from ftcore.components import ChatTemplate

TEMPLATES: tuple[ChatTemplate, ...] = (
    template("chatglm", "ChatGLM3", "<|user|>", "<|observation|>", aliases=("chatglm3",)),
    template("llama3", "Llama 3, as first published: no date, no tools", "<|eot_id|>", "<|end_of_text|>"),
)
