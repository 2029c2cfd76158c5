"""One turn of a conversation, and the order in which turns may follow each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ft_plugins.formats.fields import items, kind_of, parsed, text
from ftcore.api.samples import Message, Role
from ftcore.data.chat_template.reasoning import parted
from ftcore.data.multimodal.media_files import PLACEHOLDERS
from ftcore.errors import RowError, listed, quoted

_FOLLOWS: dict[str, tuple[Role, ...]] = {
    "": ("user",),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "observation_tag": "tool",
    "function_tag": "function_call",
}
"""Keys and roles of OpenAI's messages."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MEDIA = {column.removesuffix("s"): placeholder for column, placeholder in PLACEHOLDERS.items()}
_WEIGHTS = ("train", "loss", "weight")


def read_turn(turn: object, place: str, tags: Mapping[str, str]) -> Message:
    """One turn as a message.

    Args:
        turn: the element of the list.
        place: path of the turn in the row, such as ``messages[2]``.
        tags: names of the keys and of the roles.

    Raises:
        RowError: see `ftcore.api.components.DatasetFormat.read`.
    """
    if not isinstance(turn, Mapping):
        cure = f'write {{"{tags["role_tag"]}": ..., "{tags["content_tag"]}": ...}}'
        raise RowError(f"{place} is {kind_of(turn)}, not an object", field=place, value=turn, cure=cure)
    role, is_call = _role(turn, place, tags)
    beside = _beside(turn, tags)
    calls = _calls(beside, place)
    content = turn.get(tags["content_tag"])
    thought = None
    if is_call:
        thought, content = parted(content) if isinstance(content, str) else (None, content)
        calls, content = _called(content, f"{place}.{tags['content_tag']}"), ""
    message = Message(
        role=role,
        content=_content(content, f"{place}.{tags['content_tag']}", may_be_null=bool(calls)),
        reasoning=next(
            (text(beside[key], f"{place}.{key}") for key in _REASONING if beside.get(key) is not None), thought
        ),
        tool_calls=calls,
        train=_weight(beside, place),
    )
    if role == "assistant" and message.train != 0 and not (message.content.strip() or calls):
        cure = "write the answer, or remove the row"
        field = f"{place}.{tags['content_tag']}"
        raise RowError(f"{field} is empty: there is nothing to train on", field=field, value=content, cure=cure)
    return message


def _beside(turn: Mapping[str, Any], tags: Mapping[str, str]) -> Mapping[str, Any]:
    """The turn without its role and content keys, which may be named ``thinking`` or ``weight``."""
    return {key: value for key, value in turn.items() if key not in (tags["role_tag"], tags["content_tag"])}


def check_turns(messages: Sequence[Message], column: str, tags: Mapping[str, str]) -> None:
    """Checks the order of turns: an optional system message, then alternating user and assistant turns.

    Tool results follow the assistant.

    Raises:
        RowError: for the first turn that is out of order.
    """
    if not any(message.role != "system" for message in messages):
        cure = "write at least a question and its answer"
        raise RowError(f"{column} has no turns", field=column, cure=cure)
    before = ""
    for number, message in enumerate(messages):
        allowed = ("system", *_FOLLOWS[""]) if number == 0 else _FOLLOWS[before]
        if message.role not in allowed:
            after = f"follows {before!r}" if before else "comes first"
            raise RowError(
                f"role {message.role!r} {after}",
                field=f"{column}[{number}].{tags['role_tag']}",
                value=message.role,
                cure=f"allowed here: {' or '.join(allowed)}",
            )
        before = message.role


def _role(turn: Mapping[str, Any], place: str, tags: Mapping[str, str]) -> tuple[Role, bool]:
    """The role, and whether the turn is a call of a tool written as a turn of its own."""
    names: dict[str, tuple[Role, bool]] = {
        tags["system_tag"]: ("system", False),
        tags["user_tag"]: ("user", False),
        tags["assistant_tag"]: ("assistant", False),
        tags["observation_tag"]: ("tool", False),
        tags["function_tag"]: ("assistant", True),
    }
    names.pop("", None)  # roles whose name is assigned to another role
    key = tags["role_tag"]
    if not key or not tags["content_tag"]:
        cure = (
            'name it in dataset_info.json: "tags": {"role_tag": ..., "content_tag": ...}; use a different key for each'
        )
        raise RowError(f"no key is assigned to the {'text' if key else 'role'} of a turn", field="tags", cure=cure)
    value = turn.get(key)
    if isinstance(value, str) and value in names:
        return names[value]
    reason = f"{place} has no {key}" if key not in turn else f"unknown role {quoted(value)}"
    raise RowError(reason, field=f"{place}.{key}", value=value, cure=f"roles here: {listed(names)}")


def _content(content: object, field: str, *, may_be_null: bool) -> str:
    if content is None and may_be_null:
        return ""
    if content is None:
        raise RowError(f"{field} is null or missing", field=field, value=None, cure='write a string; "" if it is empty')
    if isinstance(content, list | tuple):
        return "".join(_part(part, f"{field}[{number}]") for number, part in enumerate(content))
    return text(content, field)


def _part(part: object, field: str) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type")
        if kind == "text":
            return text(part.get("text"), f"{field}.text")
        # TRL's format: the part marks the position of an image, the column has the file. Arrow adds keys with null.
        if isinstance(kind, str) and kind in _MEDIA and not any(value for key, value in part.items() if key != "type"):
            return _MEDIA[kind]
    cure = 'supported: {"type": "text", "text": ...}, and {"type": "image"} with the file in images'
    raise RowError(f"{field} is not a text part", field=field, value=part, cure=cure)


def _weight(turn: Mapping[str, Any], place: str) -> float | None:
    for key in _WEIGHTS:
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or not 0 <= value < math.inf:
            cure = "write true, false or a number of at least 0"
            raise RowError(f"{place}.{key} is not a weight", field=f"{place}.{key}", value=value, cure=cure)
        return float(value)
    return None


def _calls(turn: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], ...]:
    field = f"{place}.tool_calls"
    found = turn.get("tool_calls") or ()
    return tuple(_call(call, f"{field}[{number}]") for number, call in enumerate(items(found, field)))


def _called(content: object, field: str) -> tuple[Mapping[str, Any], ...]:
    """The calls in a turn whose content is ``{"name": ..., "arguments": {...}}`` or a list of these."""
    found = parsed(content, field)
    return tuple(_call(call, field) for call in (found if isinstance(found, list | tuple) else [found]))


def _call(call: object, field: str) -> Mapping[str, Any]:
    """One call in OpenAI's format. Arguments become an object, which templates render as JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        cure = 'write {"type": "function", "function": {"name": ..., "arguments": {...}}}'
        raise RowError(f"{field} is not a function call", field=field, value=call, cure=cure)
    arguments = parsed(function.get("arguments") or "{}", f"{field}.arguments")
    if not isinstance(arguments, Mapping):
        reason = f"{field}.arguments is {kind_of(arguments)}, not an object"
        raise RowError(reason, field=f"{field}.arguments", value=arguments, cure="write {name: value}")
    outer = {key: value for key, value in call.items() if key == "id"} if isinstance(call, Mapping) else {}
    return {**outer, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
