"""Thoughts that stand in an answer's text, as ``<think>...</think>`` at its start."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ftcore.samples import Message

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def parted(text: str) -> tuple[str | None, str]:
    """The thought at the start of a text, None where there is none, and what follows it.

    Line breaks around both are the template's (as in Qwen3's, which parts such texts itself).
    """
    if "<think>" not in text or not (found := _THOUGHT.match(text)):
        return None, text
    return found[1].strip("\n"), text[found.end() :].lstrip("\n")


def with_reasoning(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Answers with their thoughts in ``reasoning``, for templates that write ``reasoning_content``.

    Other templates get the text as it is: the thought is then part of the answer, and nothing is lost.
    """
    return tuple(_parted(message) for message in messages)


def _parted(message: Message) -> Message:
    if message.role != "assistant" or message.reasoning is not None:
        return message
    thought, content = parted(message.content)
    return message if thought is None else replace(message, reasoning=thought, content=content)
