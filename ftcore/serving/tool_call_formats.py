"""Formats of tool calls, defined by the text around names, keys and values."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Call = tuple[str, dict[str, Any]]
"""Name and arguments."""
Calls = list[Call]
Tools = Sequence[Mapping[str, Any]]

_NAME = re.compile(r"\s*([\w.-]+)")


class ToolCallFormat(Protocol):
    """A format of tool calls."""

    @property
    def begin(self) -> str:
        """The text before the first call; empty if an answer is either calls or text."""

    def read(self, text: str, tools: Tools) -> Calls | None:
        """The calls in a text that starts with `begin`; None if it has no complete calls."""


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Objects of name and arguments: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

    Args:
        begin: text before the first call.
        between: text before each further call; None for at most one call.
        end: text after the last call.
        key: key of the arguments.
    """

    begin: str
    between: str | None
    end: str
    key: str

    def read(self, text: str, tools: Tools) -> Calls | None:
        """See `ToolCallFormat.read`."""
        return _listed(after(text, self.begin), self._one, self.between, self.end)

    def _one(self, text: str) -> tuple[Call | None, str]:
        found, rest = _object(text)
        if found is None or not isinstance(found.get("name"), str):
            return None, rest
        arguments = found.get(self.key, {})
        return ((found["name"], arguments) if isinstance(arguments, dict) else None), rest


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """Names, each followed by an object of its arguments: ``name[ARGS]{...}``.

    Args:
        begin, between, end: see `JsonCalls`.
        named: text between name and arguments.
    """

    begin: str
    named: str
    between: str | None
    end: str

    def read(self, text: str, tools: Tools) -> Calls | None:
        """See `ToolCallFormat.read`."""
        return _listed(after(text, self.begin), self._one, self.between, self.end)

    def _one(self, text: str) -> tuple[Call | None, str]:
        if (name := _NAME.match(text)) is None:
            return None, text
        arguments, rest = _object(after(text[name.end() :], self.named) or "")
        return (None if arguments is None else (name[1], arguments)), rest


@dataclass(frozen=True, slots=True)
class MarkedCalls:
    """Names, keys and values between marks: ``<function=NAME><parameter=KEY>VALUE</parameter></function>``.

    Args:
        begin: text before the first name.
        named, keyed, valued: text between name and first key, key and value, value and next key.
        again, end: text after the last value of a call, if another call follows and if none does.
        bare_again, bare_end: the same after a name without arguments.
    """

    begin: str
    named: str
    keyed: str
    valued: str
    again: str | None
    end: str
    bare_again: str | None
    bare_end: str | None

    def read(self, text: str, tools: Tools) -> Calls | None:
        """See `ToolCallFormat.read`; values have the types of the tool's schema, and are text without a type."""
        types = {tool["function"]["name"]: _types(tool["function"]) for tool in tools}
        rest, calls = after(text, self.begin), Calls()
        mark = self.again
        while rest is not None and mark != self.end:
            if (found := first(rest, self.named, self.bare_again, self.bare_end)) is None:
                return None
            name, mark, rest = found
            arguments: dict[str, Any] = {}
            calls.append((name.strip(), arguments))
            if mark == self.bare_end and mark != self.named:
                mark = self.end
            while mark in (self.named, self.valued):
                if (keyed := first(rest, self.keyed)) is None:
                    return None
                key, _, rest = keyed
                if (valued := first(rest, self.valued, self.again, self.end)) is None:
                    return None
                value, mark, rest = valued
                arguments[key.strip()] = _value(value, types.get(name.strip(), {}).get(key.strip()))
        return calls if rest is not None and not rest.strip() else None


def _listed(
    rest: str | None, one: Callable[[str], tuple[Call | None, str]], between: str | None, end: str
) -> Calls | None:
    """Parses consecutive calls; ``one`` returns a call and the rest of the text. None if a call is invalid."""
    calls = Calls()
    while rest is not None:
        call, rest = one(rest)
        if call is None:
            return None
        calls.append(call)
        if _ends(rest, end):
            return calls
        rest = after(rest, between) if between is not None else None
    return None


def after(text: str, mark: str) -> str | None:
    """The text after a mark at its start, up to white space; None without the mark."""
    found = re.match(r"\s*" + r"\s*".join(map(re.escape, mark.split())), text)
    return text[found.end() :] if found else None


def first(text: str, *marks: str | None) -> tuple[str, str, str] | None:
    """The first mark in a text with the text before and after it; of several at one position, the longest.

    White space inside a mark is ignored; a line break at its ends is optional.
    """
    found = [(match.start(), -len(match[0]), mark, match) for mark in marks if mark and (match := _search(mark, text))]
    if not found:
        return None
    *_, mark, match = min(found, key=lambda item: item[:2])
    return text[: match.start()], mark, text[match.end() :]


def _search(mark: str, text: str) -> re.Match[str] | None:
    inner = r"\s*".join(map(re.escape, mark.split()))
    head, tail = (r"\n?" if edge == "\n" else "" for edge in (mark[:1], mark[-1:]))
    return re.search(head + inner + tail, text) if inner else None


def _object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object at the start of a text, and the rest of the text."""
    text = text.lstrip()
    try:
        found, size = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return (found if isinstance(found, dict) else None), text[size:]


def _ends(text: str, mark: str) -> bool:
    rest = after(text, mark)
    return rest is not None and not rest.strip()


def _types(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    fields = properties.items() if isinstance(properties, Mapping) else ()
    return {key: field.get("type") for key, field in fields if isinstance(field, Mapping)}


def _value(text: str, kind: Any) -> Any:
    if kind in (None, "string"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)  # Jinja renders other values as Python literals: True, ['x']
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
