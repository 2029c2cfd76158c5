"""The built-in chat templates: one Jinja file each, and a table of what else is known of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ftcore import hookimpl
from ftcore.components import ChatTemplate

_FOLDER = Path(__file__).parent


def _template(name: str, summary: str, *stop: str, file: str = "", **more: Any) -> ChatTemplate:
    """A template whose source is ``<file or name>.jinja`` in this folder; ``stop`` is what ends the model's turn."""
    return ChatTemplate(name=name, summary=summary, path=_FOLDER / f"{file or name}.jinja", stop=stop, **more)


TEMPLATES: tuple[ChatTemplate, ...] = (
    _template("chatml", "ChatML, without a default system message", "<|im_end|>"),
    _template("chatglm", "ChatGLM3", "<|user|>", "<|observation|>", aliases=("chatglm3",)),
    _template("llama3", "Llama 3, as first published: no date, no tools", "<|eot_id|>", "<|end_of_text|>"),
    _template(
        "qwen",
        "Qwen 2 and 2.5, with tools",
        "<|im_end|>",
        "<|endoftext|>",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        tool_dialect="json",
    ),
    _template(
        "smollm2",
        "SmolLM2",
        "<|im_end|>",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
)


@hookimpl
def ft_chat_templates() -> Iterable[ChatTemplate]:
    """The templates above."""
    return TEMPLATES
