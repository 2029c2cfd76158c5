"""The built-in chat templates: Jinja files, and tables with their stop tokens and settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ft_plugins.templates import chatml_like, makers, own_separators, own_tokens, plain, vendors
from ftcore import hookimpl
from ftcore.api.components import ChatTemplate

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.errors import Problem

TEMPLATES: tuple[ChatTemplate, ...] = (
    *chatml_like.TEMPLATES,
    *own_tokens.TEMPLATES,
    *vendors.TEMPLATES,
    *makers.TEMPLATES,
    *plain.TEMPLATES,
)


@hookimpl
def ft_chat_templates() -> Iterable[ChatTemplate]:
    """The templates above, and the template of the user's separators."""
    return (*TEMPLATES, own_separators.SEPARATORS)


@hookimpl
def ft_check_plan(plan: Plan) -> Iterable[Problem]:
    """Checks the user's separators."""
    return own_separators.check(plan)
