"""Samples, which dataset formats produce and stages train on: Text, Chat, Preference, Feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Place:
    """The source of a row.

    Args:
        file: the file or hub id, as the user wrote it or relative to the dataset folder.
        row: the row's number in that file, counted from 1.
        line: the row's line, counted from 1; 0 in files without a line per row.
    """

    file: str
    row: int
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: the speaker.
        content: the text; empty in an assistant turn that only calls tools.
        reasoning: the model's thinking before the answer; None if there is none.
        tool_calls: in OpenAI's format, ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``.
        train: weight of this turn in the loss; None for the run's default (assistant turns 1, all others 0).
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    train: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        return message


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text, for pretraining."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. It ends with an assistant turn, or with a user turn if only prompts are needed (ppo).

    Args:
        messages: the turns; the system message, if any, comes first.
        tools: JSON schemas of the tools that the model may call, in OpenAI's format.
        images: paths of the images, in the order of their placeholders.
        videos: paths of the videos, likewise.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a preferred and a rejected answer. ``prompt`` ends with a user or tool turn."""

    prompt: Chat
    chosen: Message
    rejected: Message


@dataclass(frozen=True, slots=True)
class Feedback:
    """A conversation whose last answer was rated good or bad (kto)."""

    chat: Chat
    good: bool


Sample = Text | Chat | Preference | Feedback
