"""Generation: prompts in, pieces of text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.samples import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant.

    Args:
        messages: the turns so far.
        tools: JSON schemas, in OpenAI's shape.
        settings: overrides of the plan's generation options for this prompt, such as ``{"temperature": 0.0}``.
        seed: makes sampling repeatable: the same prompts in one call get the same answers.
        place: where it comes from, such as ``prompts.jsonl:3``, for errors.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    Args:
        index: of the prompt that it answers.
        text: new text; may be empty in the last chunk.
        finish: empty while the answer goes on, then ``stop`` or ``length``.
        prompt_tokens: set in the last chunk.
        tokens: tokens of the answer, set in the last chunk.
    """

    index: int
    text: str
    finish: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
