"""What dataset formats make and stages eat: Text, Chat, Preference, Feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came from.

    Args:
        file: the file or hub id, as the user wrote it or relative to the dataset folder.
        row: the row's number in that file, counted from 1.
        line: the line on which the row stands, counted from 1; 0 where rows do not have lines of their own.
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
        role: who speaks.
        content: the text; an assistant turn that only calls tools has an empty one.
        reasoning: the model's thinking before the answer, None where there is none.
        tool_calls: OpenAI's shape, ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``.
        train: weight of this turn in the loss; None leaves it to the run (assistant turns 1, all others 0).
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
    """A conversation. It ends with the assistant, or with the user where only prompts are wanted (ppo).

    Args:
        messages: the turns; the system message, if any, comes first.
        tools: JSON schemas of the tools that the model may call, in OpenAI's shape.
        images: paths of the images, in the order of their placeholders.
        videos: paths of the videos, likewise.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two answers to it, of which the first is preferred. ``prompt`` ends with a user or tool turn."""

    prompt: Chat
    chosen: Message
    rejected: Message


@dataclass(frozen=True, slots=True)
class Feedback:
    """A conversation whose last answer was liked or not (kto)."""

    chat: Chat
    good: bool


Sample = Text | Chat | Preference | Feedback
