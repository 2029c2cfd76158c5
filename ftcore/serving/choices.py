"""Post-processes one answer: stop sequences, tool calls and log-probabilities."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftcore.api.inference_types import Chunk, ScoredToken, TokenLogprob
from ftcore.serving.stops import StopText
from ftcore.serving.tool_call_formats import Calls, ToolCallFormat
from ftcore.serving.tool_calls import CallText


@dataclass(frozen=True, slots=True)
class Piece:
    """An increment of an answer.

    Args:
        text: new text.
        scored: tokens of the text.
        calls: tool calls, in the last piece.
        finish: OpenAI's ``finish_reason``, in the last piece.
    """

    text: str = ""
    scored: Sequence[ScoredToken] = ()
    calls: Sequence[Mapping[str, Any]] = ()
    finish: str | None = None


class Choice:
    """Turns chunks of an engine into pieces of an answer.

    Args:
        stops: stop sequences, which are not part of the answer.
        notation: format of tool calls; None without tools, or if the template's format is unknown.
        tools: tools of the request.
    """

    def __init__(
        self, stops: Sequence[str] = (), notation: ToolCallFormat | None = None, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._stops = StopText(stops)
        self._calls = CallText(notation, tools) if notation and tools else None
        self._read, self._shown = 0, 0
        self._scored: list[tuple[int, ScoredToken]] = []
        self.tokens, self.prompt_tokens = 0, 0
        self.finish: str | None = None

    def take(self, chunk: Chunk) -> Piece:
        """The next piece; chunks after one with `finish` are ignored."""
        if self.finish:
            return Piece()
        self.tokens, self.prompt_tokens = chunk.tokens, chunk.prompt_tokens
        self._scored += [(self._read, scored) for scored in chunk.scored]
        self._read += len(chunk.text)
        text = self._stops.add(chunk.text)
        if self._stops.found:
            return self._last(text, "stop")
        if chunk.finish:
            return self._last(text + self._stops.rest(), chunk.finish)
        if self._calls:
            text = self._calls.add(text)
        self._shown += len(text)
        return Piece(text, self._due(self._shown) if text else ())

    def _last(self, text: str, finish: str) -> Piece:
        calls: Calls = []
        if self._calls:
            text = self._calls.add(text)
            more, calls = self._calls.rest()
            text = text.rstrip() if calls else text + more
        self._shown += len(text)
        self.finish = "tool_calls" if calls else finish
        scored = self._due(self._shown if self._stops.found and not calls else self._read + 1)
        return Piece(text, scored, [_call(name, values) for name, values in calls], self.finish)

    def _due(self, end: int) -> list[ScoredToken]:
        """Tokens that start before ``end`` and have not been returned."""
        count = sum(start < end for start, _ in self._scored)
        due, self._scored = self._scored[:count], self._scored[count:]
        return [scored for _, scored in due]


@dataclass
class Whole:
    """The concatenated pieces of an answer."""

    text: str = ""
    scored: list[ScoredToken] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Appends a piece."""
        self.text += piece.text
        self.scored += piece.scored
        self.calls += piece.calls
        self.finish = piece.finish or self.finish


def logprobs(scored: Sequence[ScoredToken]) -> dict[str, Any]:
    """The log-probabilities in OpenAI's format."""
    content = [_likely(one.token) | {"top_logprobs": [_likely(other) for other in one.top]} for one in scored]
    return {"content": content, "refusal": None}


def _likely(token: TokenLogprob) -> dict[str, Any]:
    # JSON has no infinity; OpenAI documents -9999.0 for very unlikely tokens
    value = max(token.logprob, -9999.0)
    return {"token": token.text, "logprob": value, "bytes": None if token.bytes is None else list(token.bytes)}


def _call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
