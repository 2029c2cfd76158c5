"""The built-in chat templates: one Jinja file each, and tables of what else is known of them."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.templates import chatml_like, plain, vendors
from ftcore import hookimpl
from ftcore.components import ChatTemplate

TEMPLATES: tuple[ChatTemplate, ...] = (*chatml_like.TEMPLATES, *vendors.TEMPLATES, *plain.TEMPLATES)


@hookimpl
def ft_chat_templates() -> Iterable[ChatTemplate]:
    """The templates above."""
    return TEMPLATES
