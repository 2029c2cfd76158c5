"""Templates that put turns between ``<|im_start|>`` and ``<|im_end|>``, and their neighbours."""

from __future__ import annotations

from ft_plugins.templates.table import template
from ftcore.components import ChatTemplate

TEMPLATES: tuple[ChatTemplate, ...] = (
    template("chatml", "ChatML, without a default system message", "<|im_end|>"),
    template(
        "qwen",
        "Qwen 2 and 2.5, with tools",
        "<|im_end|>",
        "<|endoftext|>",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        tool_dialect="json",
    ),
    template(
        "smollm2",
        "SmolLM2",
        "<|im_end|>",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
)
