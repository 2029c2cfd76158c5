"""Tool calls read out of answers, in the notation in which the chat template writes them.

Templates are not asked which notation they have: the notation is learnt from what the template writes for calls that
we know, and taken only where it reads these back. So it is the one that the model was trained on, for templates of
anybody. A template whose notation is not understood answers in plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ftcore.errors import RowError
from ftcore.samples import Chat, Message
from ftcore.serving.stops import overlap

if TYPE_CHECKING:
    from ftcore.data.rendering import Renderer

Calls = list[tuple[str, dict[str, Any]]]
"""Name and arguments of each."""
KNOWN: Calls = [("first_tool", {"some_key": "some value", "other": "x"}), ("second_tool", {"a_key": "b"})]
KEY = ("name", "arguments", "parameters")


class Notation(Protocol):
    """How a template writes calls."""

    @property
    def begin(self) -> str:
        """What stands before the first call; empty where an answer is either a call or text."""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> Calls | None:
        """The calls of a text that begins with `begin`; None where it is none, or not whole."""


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Objects of name and arguments, between marks.

    Args:
        begin, between, end: what stands around them; blanks at their ends do not matter.
        key: what the arguments are called.
    """

    begin: str
    between: str
    end: str
    key: str

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> Calls | None:
        """See `Notation.read`."""
        rest = _after(text, self.begin)
        calls: Calls = []
        while rest is not None:
            try:
                found, size = json.JSONDecoder().raw_decode(rest.lstrip())
            except (ValueError, RecursionError):
                return None
            if not isinstance(found, dict) or not isinstance(found.get("name"), str):
                return None
            arguments = found.get(self.key, {})
            if not isinstance(arguments, dict):
                return None
            calls.append((found["name"], arguments))
            rest = rest.lstrip()[size:]
            if (end := _after(rest, self.end)) is not None and not end.strip():
                return calls
            rest = _after(rest, self.between) if self.between else None
        return None


@dataclass(frozen=True, slots=True)
class XmlCalls:
    """``<function=NAME>`` with ``<parameter=KEY>`` in it, as Qwen 3 Coder writes them."""

    begin: str

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> Calls | None:
        """See `Notation.read`; a value is what the tool's schema says, and text where it says nothing."""
        types = {tool["function"]["name"]: _types(tool["function"]) for tool in tools}
        calls: Calls = []
        for name, body in re.findall(r"<function=([^>\n]+)>\n?(.*?)</function>", text, re.DOTALL):
            pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
            calls.append((name, {key: _value(value, types.get(name, {}).get(key)) for key, value in pairs}))
        return calls if calls and text.count("<function=") == len(calls) else None


def learn(renderer: Renderer) -> Notation | None:
    """How the renderer's template writes calls; None where it has no tools, or a notation that is not understood."""
    one = _written(renderer, KNOWN[:1])
    if one is None:
        return None
    two = _written(renderer, KNOWN)
    found: list[Notation | None] = [_json_notation(one, two), _xml_notation(one)]
    for notation in found:
        if notation is None:
            continue
        if notation.read(one, _TOOLS) == KNOWN[:1] and (two is None or notation.read(two, _TOOLS) == KNOWN):
            return notation
    return None


class CallText:
    """Passes text on until calls begin, and reads these at the end.

    Args:
        notation: of the template.
        tools: that the model was offered.
    """

    def __init__(self, notation: Notation, tools: Sequence[Mapping[str, Any]]) -> None:
        self.notation, self.tools = notation, tools
        self._held, self._inside = "", not notation.begin

    def add(self, text: str) -> str:
        """What is text for sure."""
        self._held += text
        if self._inside:
            return ""
        at = self._held.find(self.notation.begin)
        self._inside = at >= 0
        cut = at if self._inside else len(self._held) - overlap(self._held, self.notation.begin)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> tuple[str, Calls]:
        """Text that was held back after all, and the calls; one of them is empty."""
        names = {tool["function"]["name"] for tool in self.tools}
        calls = self.notation.read(self._held, self.tools) if self._inside else None
        # without a mark of its own a call is told from text by the name
        if calls and (self.notation.begin or all(name in names for name, _ in calls)):
            return "", calls
        return self._held, []


_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "a tool",
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}},
        },
    }
    for name, arguments in KNOWN
]


def _written(renderer: Renderer, calls: Calls) -> str | None:
    """What a model that calls these says, as far as it is shown."""
    written = [{"type": "function", "function": {"name": name, "arguments": values}} for name, values in calls]
    answer = Message("assistant", "", tool_calls=tuple(written))
    try:
        found = renderer.render(Chat((Message("user", "?"), answer), tuple(_TOOLS)))
    except RowError:
        return None
    span = found.said[-1]
    said = found.text[span.start : span.end]
    ids = renderer.tokenizer(said, add_special_tokens=False)["input_ids"]
    return str(renderer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


def _json_notation(one: str, two: str | None) -> JsonCalls | None:
    if (found := _find(one, 0)) is None:
        return None
    start, end, key = found
    between = ""
    if two is not None and (first := _find(two, 0)) and (second := _find(two, first[1])):
        between = two[first[1] : second[0]].strip()
    return JsonCalls(one[:start].strip(), between, one[end:].strip(), key)


def _find(text: str, start: int) -> tuple[int, int, str] | None:
    """The first object with a name and arguments from ``start`` on: its start and end, and what these are called."""
    while (at := text.find("{", start)) >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            found, end = None, at
        if isinstance(found, dict) and "name" in found:
            for key in KEY[1:]:
                if isinstance(found.get(key), dict):
                    return at, end, key
        start = at + 1
    return None


def _xml_notation(one: str) -> XmlCalls | None:
    at = one.find(f"<function={KNOWN[0][0]}>")
    return XmlCalls(one[:at].strip() or "<function=") if at >= 0 else None


def _after(text: str, mark: str) -> str | None:
    """What follows a mark at the start of a text, blanks aside; None where it is not there."""
    pattern = r"\s*".join(re.escape(part) for part in mark.split())
    found = re.match(rf"\s*{pattern}", text)
    return text[found.end() :] if found else None


def _types(function: Mapping[str, Any]) -> dict[str, Any]:
    properties = (function.get("parameters") or {}).get("properties") or {}
    return {key: field.get("type") for key, field in properties.items() if isinstance(field, Mapping)}


def _value(text: str, kind: Any) -> Any:
    if kind in (None, "string"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
