"""Separates reasoning from answers, as in ``<think>...</think>`` at the start of an answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from ftcore.api.samples import Message
from ftcore.errors import RowError

Tags = tuple[str, str]
"""Opening and closing tag of reasoning."""
THINK: Tags = ("<think>", "</think>")
_TAG = r"(<[^<>\s]+>|\[/?\w+\]|◁/?\w+▷)"
_LAST_TAG, _FIRST_TAG = re.compile(_TAG + r"\s*$"), re.compile(r"\s*" + _TAG)


def parted(text: str, tags: Sequence[Tags] = (THINK,)) -> tuple[str | None, str]:
    """The reasoning at the start of a text, None without any, and the rest of the text.

    Line breaks around both belong to the template, as in Qwen3's template, which splits such texts itself.
    """
    for opening, closing in tags:
        if opening in text and (found := _thought(opening, closing).match(text)):
            return found[1].strip("\n"), text[found.end() :].lstrip("\n")
    return None, text


@cache
def _thought(opening: str, closing: str) -> re.Pattern[str]:
    return re.compile(rf"\s*{re.escape(opening)}(.*?){re.escape(closing)}", re.DOTALL)


def tags_between(before: str, after: str) -> tuple[Tags, ...]:
    """The reasoning tags of a template; ``<think>`` is always included.

    The second tag must close the first, as ``[/THINK]`` closes ``[THINK]``.

    Args:
        before, after: text of the template before and after reasoning.
    """
    opening, closing = _LAST_TAG.search(before), _FIRST_TAG.match(after)
    own = (opening[1], closing[1]) if opening and closing else THINK
    # unpaired tokens such as gpt-oss' <|message|> and <|end|> are not reasoning tags: they also occur elsewhere
    paired = own[1].replace("/", "", 1) == own[0] != own[1]
    return (THINK, own) if paired and own != THINK else (THINK,)


def with_reasoning(messages: Iterable[Message], tags: Sequence[Tags] = (THINK,)) -> tuple[Message, ...]:
    """Moves the reasoning of answers to ``reasoning``, for templates that render ``reasoning_content``.

    For other templates, the text is unchanged: the reasoning is then part of the answer.
    """
    return tuple(_parted(message, tags) for message in messages)


def without_thoughts(messages: Iterable[Message], tags: Sequence[Tags] = (THINK,)) -> tuple[Message, ...]:
    """Removes reasoning from answers.

    Raises:
        RowError: a trained answer contains only reasoning.
    """
    return tuple(_bare(number, message, tags) for number, message in enumerate(messages))


def thought_of(message: Message, tags: Sequence[Tags] = (THINK,)) -> str:
    """The reasoning of an answer; empty without any."""
    if message.role != "assistant":
        return ""
    thought = parted(message.content, tags)[0] if message.reasoning is None else message.reasoning
    return (thought or "").strip()


def holds(text: str, thought: str, answer: str) -> bool:
    """Whether the text contains the reasoning before the answer, up to white space."""
    before = text[: text.rfind(answer)] if answer and answer in text else text
    return thought in before or "".join(thought.split()) in "".join(before.split())


def _bare(number: int, message: Message, tags: Sequence[Tags]) -> Message:
    if message.role != "assistant":
        return message
    thought, content = parted(message.content, tags)
    if thought is None and message.reasoning is None:
        return message
    if message.train != 0 and not (content.strip() or message.tool_calls):
        reason = f"answer {number + 1} contains only reasoning, and enable_thinking is false"
        raise RowError(reason, field=f"messages[{number}]", cure="remove the row, or leave out enable_thinking")
    return replace(message, reasoning=None, content=content)


def _parted(message: Message, tags: Sequence[Tags]) -> Message:
    if message.role != "assistant" or message.reasoning is not None:
        return message
    thought, content = parted(message.content, tags)
    return message if thought is None else replace(message, reasoning=thought, content=content)
