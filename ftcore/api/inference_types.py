"""Types for generation: prompts and pieces of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.api.samples import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation whose next turn is the assistant's.

    Args:
        messages: the turns so far.
        tools: JSON schemas in OpenAI's format.
        settings: overrides of the plan's generation options for this prompt, such as ``{"temperature": 0.0}``.
        seed: makes sampling reproducible: the same prompts in one call get the same answers.
        place: source for errors, such as ``prompts.jsonl:3``.
        ids: its tokens, if known; an engine that accepts them does not render the messages.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    place: str = ""
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its log-probability, before temperature and other sampling settings.

    Args:
        text: text of the token alone; an incomplete character is U+FFFD.
        logprob: natural logarithm of its probability.
        bytes: bytes of the token; None if the tokenizer does not give them.
    """

    text: str
    logprob: float
    bytes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer, and the most likely tokens at its position, most likely first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    Args:
        index: index of the prompt that it answers.
        text: new text; may be empty in the last chunk.
        finish: empty until the last chunk, which has ``stop``, ``length`` or ``error``.
        prompt_tokens: tokens of the prompt; set in the last chunk, and in every chunk of a session.
        tokens: tokens of the answer so far; set in the last chunk, and in every chunk of a session.
        scored: the tokens of this chunk, in a session with log-probabilities; without an end of turn that has no text.
        error: the reason, with ``finish`` ``error``.
    """

    index: int
    text: str
    finish: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    scored: tuple[ScoredToken, ...] = ()
    error: str = ""
