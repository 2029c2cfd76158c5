"""Generation: prompts in, pieces of text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftcore.api.samples import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant.

    Args:
        messages: the turns so far.
        tools: JSON schemas, in OpenAI's shape.
        settings: overrides of the plan's generation options for this prompt, such as ``{"temperature": 0.0}``.
        seed: makes sampling repeatable: the same prompts in one call get the same answers.
        place: where it comes from, such as ``prompts.jsonl:3``, for errors.
        ids: its tokens, where they are made already; an engine that takes them does not render the messages.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    place: str = ""
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely the model finds it, before temperature and the like.

    Args:
        text: of the token alone; an unfinished character is U+FFFD.
        logprob: natural logarithm of its probability.
        bytes: of the token, None where the tokenizer does not tell.
    """

    text: str
    logprob: float
    bytes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer, and the likeliest tokens in its place, the likeliest first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer.

    Args:
        index: of the prompt that it answers.
        text: new text; may be empty in the last chunk.
        finish: empty while the answer goes on, then ``stop`` or ``length``; ``error`` where it failed.
        prompt_tokens: set in the last chunk, and in every chunk of a session.
        tokens: tokens of the answer, set in the last chunk; so far, in every chunk of a session.
        scored: the tokens that came with this chunk, where a session was asked for log-probabilities; an end of turn
            that is no text is not among them.
        error: why it failed.
    """

    index: int
    text: str
    finish: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    scored: tuple[ScoredToken, ...] = ()
    error: str = ""
