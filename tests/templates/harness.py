"""Renders templates for the cases of conversations.py, on a day that stands still."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import jinja2
from conversations import CASES, Case
from oracle_map import ENTRIES
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from ft_plugins.templates import TEMPLATES
from ftcore.api.components import ChatTemplate

GOLDEN = Path(__file__).parent / "golden"
BY_NAME = {template.name: template for template in TEMPLATES}
TODAY = datetime.datetime(2025, 3, 9, 12, 30)


class Today(datetime.datetime):
    """A clock for templates that write the date."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return TODAY


@dataclass(frozen=True)
class Rendering:
    """What a template makes of a case.

    Args:
        pieces: the text; every second piece is what the model says.
        prompt: the text up to where the last answer begins, as the template writes it for inference.
        refused: the template's reason when it refuses the case.
    """

    pieces: tuple[str, ...] = ()
    prompt: str = ""
    refused: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def said(self) -> tuple[str, ...]:
        return self.pieces[1::2]

    def as_json(self) -> dict[str, Any]:
        if self.refused:
            return {"refused": self.refused}
        same = self.prompt == "".join(self.pieces[:-2])
        return {"pieces": list(self.pieces)} | ({} if same else {"prompt": self.prompt})


@contextmanager
def frozen_date() -> Iterator[None]:
    with mock.patch.object(chat_template_utils, "datetime", Today):
        yield


def cases(template: ChatTemplate) -> dict[str, Case]:
    """The cases that a template is asked for."""
    there = {
        "tools": bool(template.tool_dialect),
        "thinking": template.thinking,
        "vision": ENTRIES.get(template.name, {}).get("vision", False),
    }
    return {name: case for name, case in CASES.items() if all(there[need] for need in case.needs)}


def render(source: str, case: Case, tokens: dict[str, str], *, prompt: bool = False) -> tuple[str, list[Any]]:
    """Text, and the spans of what the model says; ``prompt``: without the last answer, up to where it begins."""
    with frozen_date():
        texts, spans = render_jinja_template(
            conversations=[case.messages[:-1] if prompt else case.messages],
            tools=case.tools or None,
            chat_template=source,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask="endgeneration" in source,
            **tokens,
            **case.variables,
        )
    return texts[0], spans[0] if spans else []


def ours(template: ChatTemplate, case: Case) -> Rendering:
    """Our rendering."""
    source, tokens = template.source(), ENTRIES.get(template.name, {}).get("tokens", {})
    try:
        text, spans = render(source, case, tokens)
        prompt, _ = render(source, case, tokens, prompt=True)
    except jinja2.TemplateError as error:
        return Rendering(refused=str(error))
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return Rendering(tuple(text[a:b] for a, b in pairwise(edges)), prompt)


def read_golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def write_golden(name: str, renderings: dict[str, Rendering]) -> None:
    value = {case: rendering.as_json() for case, rendering in renderings.items()}
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")
