"""Parses tool calls in answers, in the format of the chat template.

The format is detected: the template renders known calls, and a parser is selected that reads them back. It is therefore
the format of training, for any template. With an unknown format, tool calls remain plain text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ftcore.api.samples import Chat, Message
from ftcore.serving.stops import overlap
from ftcore.serving.tool_call_formats import Calls, JsonCalls, MarkedCalls, NamedCalls, ToolCallFormat, Tools

if TYPE_CHECKING:
    from ftcore.data.chat_template.renderer import Renderer

Call = tuple[str, dict[str, Any]]
FIRST: Call = ("first_tool", {"key_one": "value one", "key_two": "value two"})
SECOND: Call = ("second_tool", {"key_one": "a"})
BARE: Call = ("bare_tool", {})
TYPED: Call = ("typed_tool", {"a_text": "b c", "flag": True, "list": ["x", {"y": 1}], "number": 5})
PROBES: dict[str, Calls] = {
    "one": [FIRST],
    "two": [FIRST, SECOND],
    "bare": [BARE],
    "typed": [TYPED],
    "all": [TYPED, BARE, FIRST],
}
"""Calls for the detection. A template may refuse some of them: Llama 3 allows one call per turn."""
_KINDS: dict[type, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    list: {"type": "array", "items": {"type": "string"}},
    str: {"type": "string"},
}


def learn(renderer: Renderer) -> ToolCallFormat | None:
    """The format of the template's calls; None without tools, or for an unknown format."""
    written = {name: text for name, calls in PROBES.items() if (text := _written(renderer, calls)) is not None}
    if "one" not in written:
        return None
    makers: tuple[Callable[[dict[str, str]], ToolCallFormat | None], ...] = (_json, _named, _marked)
    for make in makers:
        notation = make(written)
        if notation and all(notation.read(text, _TOOLS) == PROBES[name] for name, text in written.items()):
            return notation
    return None


class CallText:
    """Passes text on until calls start, and parses these at the end.

    Args:
        notation: format of the calls.
        tools: tools of the request; a call of another tool is text.
    """

    def __init__(self, notation: ToolCallFormat, tools: Tools) -> None:
        self.notation, self.tools = notation, tools
        self._mark = next(iter(notation.begin.split()), "")
        self._held, self._inside = "", not self._mark

    def add(self, text: str) -> str:
        """The text that is not part of a call."""
        self._held += text
        if self._inside:
            return ""
        at = self._held.find(self._mark)
        self._inside = at >= 0
        cut = at if self._inside else len(self._held) - overlap(self._held, self._mark)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> tuple[str, Calls]:
        """The held-back text and the calls; one of them is empty."""
        names = {tool["function"]["name"] for tool in self.tools}
        calls = self.notation.read(self._held, self.tools) if self._inside else None
        if calls and all(name in names for name, _ in calls):
            return "", calls
        return self._held, []


def _tool(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    fields = {key: _KINDS[type(value)] | {"description": "a value"} for key, value in arguments.items()}
    parameters = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": "a tool", "parameters": parameters}}


_TOOLS = [_tool(*call) for call in (FIRST, SECOND, BARE, TYPED)]


def _written(renderer: Renderer, calls: Calls) -> str | None:
    """The visible text of an answer with these calls; None if the template refuses it."""
    written = [{"type": "function", "function": {"name": name, "arguments": values}} for name, values in calls]
    answer = Message("assistant", "", tool_calls=tuple(written))
    try:
        found = renderer.render(Chat((Message("user", "?"), answer), tuple(_TOOLS)))
    except Exception:  # RowError, or any exception of a template
        return None
    span = found.said[-1]
    said = found.text[span.start : span.end]
    ids = renderer.tokenizer(said, add_special_tokens=False)["input_ids"]
    shown = str(renderer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    # templates with reasoning write an empty block before the calls
    return shown.rpartition("</think>")[2].strip()


def _json(written: dict[str, str]) -> ToolCallFormat | None:
    one, two = written["one"], written.get("two")
    if (found := _call_object(one, 0)) is None:
        return None
    start, end, key = found
    between = None
    if two is not None and (begun := _call_object(two, 0)) and (further := _call_object(two, begun[1])):
        between = two[begun[1] : further[0]].strip()
    return JsonCalls(one[:start].strip(), between, one[end:].strip(), key)


def _call_object(text: str, start: int) -> tuple[int, int, str] | None:
    """Start, end and key of the arguments of the first object with name and arguments from ``start``."""
    while (at := text.find("{", start)) >= 0:
        found, end = _decoded(text, at)
        for key in ("arguments", "parameters"):
            if isinstance(found, dict) and "name" in found and isinstance(found.get(key), dict):
                return at, end, key
        start = at + 1
    return None


def _named(written: dict[str, str]) -> ToolCallFormat | None:
    one, two = written["one"], written.get("two")
    if (found := _named_object(one)) is None:
        return None
    begin, named, end = found
    between = None
    if two is not None and (in_two := _named_object(two)) and (name := in_two[2].find(SECOND[0])) >= 0:
        between = in_two[2][:name].strip()
    return NamedCalls(begin.strip(), named.strip(), between, end.strip())


def _named_object(text: str) -> tuple[str, str, str] | None:
    """The text before the first tool's name, between name and arguments, and after the arguments."""
    begin, name, rest = text.partition(FIRST[0])
    at = rest.find("{")
    found, end = _decoded(rest, at) if at >= 0 else (None, 0)
    return (begin, rest[:at], rest[end:]) if name and found == FIRST[1] else None


def _decoded(text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return None, at


def _marked(written: dict[str, str]) -> ToolCallFormat | None:
    parts = _cut(written["one"], FIRST[0], "key_one", "value one", "key_two", "value two")
    if parts is None or len({*parts[1:4:2], parts[2]}) < 2 or not all(part.strip() for part in parts[1:]):
        return None
    begin, named, keyed, valued, keyed_too, end = parts
    if keyed_too != keyed:
        return None
    again = bare_end = bare_again = None
    if (two := _cut(written.get("two", ""), "value two", SECOND[0])) is not None:
        again = two[1]
    if (bare := _cut(written.get("bare", ""), BARE[0])) is not None:
        bare_end = bare[1]
        if again is not None:
            bare_again = _further(end, again, bare_end)
    return MarkedCalls(begin.strip(), named, keyed, valued, again, end, bare_again, bare_end)


def _cut(text: str, *words: str) -> list[str] | None:
    """The text before, between and after consecutive words; None if a word is missing."""
    parts = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _further(end: str, again: str, bare_end: str) -> str | None:
    """The text between a call without arguments and the next call, derived from ``again``."""
    same = next((at for at, (a, b) in enumerate(zip(end, again, strict=False)) if a != b), min(len(end), len(again)))
    tail = end[same:]
    return bare_end[: len(bare_end) - len(tail)] + again[same:] if bare_end.endswith(tail) else None
