"""A template from options: ``user_token: "Human:"``, ``assistant_token`` and ``system_token``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ft_plugins.templates.separators import BOS, Separators
from ftcore.api.components import ChatTemplate, OptionGroup
from ftcore.errors import Problem

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

    from ftcore.api.plan import Plan


class SeparatorOptions(OptionGroup):
    """The text before each turn. A space follows a text that ends with a colon. A line break ends each turn."""

    user_token: str | None = None
    """Text before a user message, such as ``Human:``."""
    assistant_token: str | None = None
    """Text before an answer, such as ``Assistant:``. The answer ends with the tokenizer's ``eos_token``."""
    system_token: str | None = None
    """Text before the system message, such as ``System:``. Default: the message without a text before it."""


@dataclass(frozen=True, kw_only=True)
class OwnSeparators(ChatTemplate):
    """A template whose source is built from its options."""

    Options = SeparatorOptions

    def configured(self, options: OptionGroup) -> Self:
        """The template with these separators."""
        assert isinstance(options, SeparatorOptions)
        answer = options.assistant_token or ""
        separators = Separators(
            start=BOS,
            system=(_before(options.system_token), "\n"),
            user=(_before(options.user_token), "\n"),
            answer=answer,
            lead=" " if answer.endswith(":") else "",
            gap="\n",
        )
        return replace(self, text=separators.source())


SEPARATORS = OwnSeparators(
    name="separators",
    summary="separators from the options user_token, assistant_token and system_token",
    selected_by=("user_token", "assistant_token", "system_token"),
)


def check(plan: Plan) -> Iterable[Problem]:
    """Checks that user_token and assistant_token are set."""
    if plan.template is None or not isinstance(options := plan.template.options, SeparatorOptions):
        return
    values = {"user_token": options.user_token, "assistant_token": options.assistant_token}
    examples = {"user_token": '"Human:"', "assistant_token": '"Assistant:"'}
    there = [name for name in ("user_token", "assistant_token", "system_token") if getattr(options, name)]
    for name, value in values.items():
        if value:
            continue
        message = f"{name} is empty" if value is not None else f"{name} is missing"
        if there and value is None:
            message = f"{there[0]} is set, and {name} is missing"
        where = name if value is not None else there[0] if there else "template"
        yield Problem(message, plan.where(where), f"write {name}: {examples[name]}")


def _before(token: str | None) -> str:
    return f"{token} " if token and token.endswith(":") else token or ""
