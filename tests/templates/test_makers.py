"""What the shared conversations do not ask of the further makers' templates."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from conversations import Case, answer, call, result, user
from harness import BY_NAME, render

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
BOOK = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Books a room.\nFor a night.",
        "parameters": {
            "type": "object",
            "properties": {
                "guests": {
                    "type": "array",
                    "description": "Who comes",
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string", "description": "Full name"},
                            "age": {"type": "integer"},
                        },
                        "required": ["name"],
                    },
                },
                "dates": {"type": "array", "items": {"type": "string"}},
                "grid": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                "kinds": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
                "anything": {"type": "array"},
                "room": {
                    "type": "object",
                    "description": "Which room",
                    "properties": {
                        "floor": {"type": "integer", "minimum": 1, "maximum": 9},
                        "sea": {"type": "boolean"},
                    },
                    "required": ["floor"],
                },
                "free": {"type": "object"},
                "when": {"type": "string", "format": "date", "description": "The day."},
                "price": {"type": "number", "default": 10.5},
                "note": {"type": "string", "default": "none", "nullable": True},
                "level": {"type": "string", "enum": ["low", "high"], "description": "How good"},
                "stars": {"type": "integer", "enum": [3, 4]},
                "mixed": {"type": ["string", "null"]},
                "either": {"oneOf": [{"type": "string", "format": "uri"}, {"type": "integer"}]},
                "unknown": {"description": "Whatever"},
            },
            "required": ["guests", "room"],
        },
    },
}
"""Everything that a JSON schema says now and then."""

DESCRIBED = {
    "functionary3_2": (
        "// Books a room.\n"
        "For a night.\n"
        "type book = (_: {\n"
        "// Who comes.\n"
        "guests: {\n"
        "    // Full name.\n"
        "    name: string,\n"
        "    age?: number,\n"
        "}[],\n"
        "dates?: string[],\n"
        "grid?: number[][],\n"
        'kinds?: ("a" | "b")[],\n'
        "anything?: [],\n"
        "// Which room.\n"
        "room: {\n"
        "    // Maximum=9 Minimum=1\n"
        "    floor: number,\n"
        "    sea?: boolean,\n"
        "},\n"
        "free?: {\n"
        "},\n"
        "// The day. Format=date\n"
        "when?: string,\n"
        "// Default=10.5.\n"
        "price?: number,\n"
        '// Default="none".\n'
        "note?: string | null,\n"
        "// How good.\n"
        'level?: "low" | "high",\n'
        "stars?: 3 | 4,\n"
        "mixed?: string | null,\n"
        "// Format=uri or \n"
        "either?: string | integer,\n"
        "// Whatever.\n"
        "unknown?: ,\n"
        "}) => any;"
    ),
    "gigachat3": (
        "// Books a room.\n"
        "// For a night.\n"
        "type book = (_: {\n"
        "  // Who comes\n"
        "  guests: {\n"
        "    // Full name\n"
        "    name: string,\n"
        "    age?: number,\n"
        "  }[],\n"
        "  dates?: string[],\n"
        "  grid?: number[][],\n"
        '  kinds?: "a" | "b"[],\n'
        "  anything?: Array<any>,\n"
        "  // Which room\n"
        "  room: {\n"
        "    // minimum: 1\n"
        "    // maximum: 9\n"
        "    floor: number,\n"
        "    sea?: boolean,\n"
        "  },\n"
        "  free?: {\n"
        "  },\n"
        "  // The day.\n"
        '  // format: "date"\n'
        "  when?: Date,\n"
        "  price?: number, // default: 10.5\n"
        '  note?: string, // default: "none"\n'
        "  // How good\n"
        '  level?: "low" | "high",\n'
        "  stars?: 3 | 4,\n"
        "  mixed?: any,\n"
        "  either?: any,\n"
        "  // Whatever\n"
        "  unknown?: any,\n"
        "}) => any;"
    ),
    "apertus": (
        "// Books a room.\n"
        "For a night.\n"
        "type book = (_: {\n"
        "// Who comes\n"
        "guests: any[],\n"
        "dates?: string[],\n"
        "grid?: number[][],\n"
        "kinds?: string[],\n"
        "anything?: any[],\n"
        "// Which room\n"
        "room: {\n"
        "floor: \n"
        "                number, sea?: \n"
        "                boolean},\n"
        "free?: object,\n"
        "// The day.\n"
        "when?: string,\n"
        "price?: number, // default: 10.5,\n"
        'note?: string | null, // default: "none",\n'
        "// How good\n"
        'level?: "low" | "high",\n'
        "stars?: number,\n"
        "mixed?: string | null,\n"
        "either?: string | \n"
        "number,\n"
        "// Whatever\n"
        "unknown?: any\n"
        "}) => any;"
    ),
}
"""As the makers' templates write it (compared with those in ../shared)."""


def text(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    return render(BY_NAME[name].source(), Case(messages=messages, tools=tools or []), TOKENS)[0]


@pytest.mark.parametrize("name", DESCRIBED)
def test_tools_are_described_in_typescript(name: str) -> None:
    assert DESCRIBED[name] in text(name, [user("Hi"), answer("Hello.")], [BOOK])


def test_lists_and_unions_as_python_types() -> None:
    """The makers' template never comes back from a list: it asks for ``spec.items``, which is a method."""
    assert (
        "book(guests: list[dict], dates: list[str], grid: list[list[float]], kinds: list[str], anything: list[Any], "
        "room: dict, free: dict, when: str, price: float, note: str, level: str, stars: int, mixed: Union[str,Any], "
        "either: Any, unknown: Any) - Books a room."
    ) in text("hermes3", [user("Hi"), answer("Hello.")], [BOOK])


@pytest.mark.parametrize(
    ("name", "calls"),
    [("gigachat3", 2), ("gigachat3_1", 2), ("muse_glimmer", 1), ("cohere2", 1), ("cohere2_moe", 1)],
)
def test_what_would_be_dropped_is_refused(name: str, calls: int) -> None:
    """A second call, or a text beside a call."""
    said = answer("" if calls == 2 else "Let me look.", calls=[call("f", {}), call("g", {})][:calls])
    with pytest.raises(jinja2.TemplateError, match=r"calls one function|either answers or calls tools"):
        text(name, [user("Hi"), said])


@pytest.mark.parametrize("name", ["minimax3", "step3_5", "spark", "laguna", "laguna_s", "minicpm5", "nemotron3"])
def test_arguments_that_are_text_are_refused(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="must be a mapping"):
        text(name, [user("Hi"), answer("", calls=[call("f", "{}")])])


@pytest.mark.parametrize("name", ["kimi_k2", "kimi_k2_thinking", "kimi_k3"])
def test_a_result_without_a_call_is_refused(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="more than there are calls"):
        text(name, [user("Hi"), result("21"), answer("Hello.")])


def test_kimi_numbers_calls_through_the_conversation() -> None:
    turns = [user("Hi"), answer("", calls=[call("f", {}), call("g", {})]), result("1"), result("2"), answer("Both.")]
    written = text("kimi_k2", [*turns, user("And?"), answer("", calls=[call("f", {})]), result("3"), answer("!")])
    assert [number for number in range(4) if f"functions.f:{number}" in written] == [0, 2]
    assert "## Return of functions.g:1\n2<|im_end|>" in written
    assert "## Return of functions.f:2\n3<|im_end|>" in written


@pytest.mark.parametrize("name", ["muse_glimmer", "kimi_k3"])
def test_results_find_their_call_by_its_identifier(name: str) -> None:
    """Results in another order than the calls."""
    calls = [call("f", {}) | {"id": "a"}, call("g", {}) | {"id": "b"}]
    results = [result("of g") | {"tool_call_id": "b"}, result("of f") | {"tool_call_id": "a"}]
    written = text(name, [user("Hi"), answer("", calls=calls), *results, answer("Both.")])
    names = {"muse_glimmer": '<tool_output name="{}">\n', "kimi_k3": 'tool="{}" index="{}"<|sep|>'}[name]
    assert names.format("g", 1) + "of g" in written
    assert names.format("f", 2) + "of f" in written


@pytest.mark.parametrize("name", ["apertus", "firefunction2", "muse_glimmer"])
def test_the_date(name: str) -> None:
    assert text(name, [user("Hi"), answer("Hello.")]).count("2025-03-09") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if "default_system" in BY_NAME[name].source()])
def test_a_default_system_message(name: str) -> None:
    """What a run sets as ``default_system`` is written as a system message is: of every template that knows it."""
    turns = [user("Hi"), answer("Hello.")]
    source = "{%- set default_system = 'Be brief.' %}" + BY_NAME[name].source()
    expected = text(name, [{"role": "system", "content": "Be brief."}, *turns])
    assert render(source, Case(messages=turns), TOKENS)[0] == expected
