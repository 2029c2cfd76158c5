"""Converts the messages of a request to those of the chat template, as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftcore.api.samples import Message
from ftcore.serving.constrained_schema import ChatMessage, Tool, ToolCall
from ftcore.serving.http_errors import ApiError
from ftcore.utils.json_files import DEEPEST, too_deep
from ftcore.utils.strict_json import RepeatedKeyError, loads

FIELDS = {"assistant": ("reasoning_content", "tool_calls"), "tool": ("tool_call_id",)}
"""Fields that only messages of a role may have."""


def conversation(found: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The turns of a request; ``developer`` is the newer name of ``system``.

    Tool results are sorted in the order of their calls, because templates identify them by order.

    Raises:
        ApiError: the turns are not a conversation without its answer.
    """
    for place, turn in enumerate(found):
        _check(turn, f"messages.{place}")
    if found[-1].role == "assistant":
        raise ApiError(400, "the last message is the assistant's: there is nothing to answer", param="messages")
    messages = []
    for place, turn in _ordered(found):
        where = f"messages.{place}"
        calls = tuple(_call(call, f"{where}.tool_calls") for call in turn.tool_calls or ())
        role = "system" if turn.role == "developer" else turn.role
        messages.append(Message(role, turn.content or "", turn.reasoning_content, calls))
    return tuple(messages)


def tools(found: Sequence[Tool] | None) -> tuple[Mapping[str, Any], ...]:
    """The tools for templates, without default values."""
    return tuple(tool.model_dump(exclude_unset=True) for tool in found or ())


def _check(turn: ChatMessage, where: str) -> None:
    for role, names in FIELDS.items():
        if turn.role != role and (wrong := [name for name in names if getattr(turn, name) is not None]):
            raise ApiError(
                400, f"{where}.{wrong[0]}: a {turn.role} message does not have this field", param=f"{where}.{wrong[0]}"
            )
    if turn.content is None and not (turn.role == "assistant" and turn.tool_calls):
        raise ApiError(400, f"{where}.content is missing", param=f"{where}.content")


def _call(call: ToolCall, where: str) -> dict[str, Any]:
    try:
        arguments = loads(call.function.arguments or "{}")
        deep = too_deep(arguments)
    except RecursionError:
        arguments, deep = None, True
    except RepeatedKeyError as error:
        raise ApiError(400, f"{where}: the arguments of {call.function.name}: {error}", param=where) from None
    except ValueError:
        arguments, deep = None, False
    if deep:
        reason = f"{where}: the arguments of {call.function.name} are nested more than {DEEPEST} levels deep"
        raise ApiError(400, reason, param=where)
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{where}: the arguments of {call.function.name} are not a JSON object", param=where)
    # no id: training data has none, and a template may render it
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _ordered(found: Sequence[ChatMessage]) -> list[tuple[int, ChatMessage]]:
    """The turns with their indices; tool results are in the order of the calls."""
    ordered: list[tuple[int, ChatMessage]] = []
    results: list[tuple[int, int, ChatMessage]] = []
    ranks: dict[str, int] = {}
    for place, turn in enumerate(found):
        if turn.role == "tool":
            if turn.tool_call_id is not None and turn.tool_call_id not in ranks:
                reason = f"messages.{place}.tool_call_id {turn.tool_call_id!r:.60} is not a call of the previous turn"
                raise ApiError(400, reason, param=f"messages.{place}.tool_call_id")
            rank = len(ranks) if turn.tool_call_id is None else ranks[turn.tool_call_id]
            results.append((rank, place, turn))
            continue
        ordered += _by_rank(results)
        results = []
        ordered.append((place, turn))
        if turn.role == "assistant":
            ranks = {}
            for call in turn.tool_calls or ():
                ranks.setdefault(call.id, len(ranks))
    return ordered + _by_rank(results)


def _by_rank(results: Sequence[tuple[int, int, ChatMessage]]) -> list[tuple[int, ChatMessage]]:
    return [(place, turn) for _, place, turn in sorted(results, key=lambda result: result[:2])]
