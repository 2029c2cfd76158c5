"""What the shared conversations do not ask of the vendors' templates."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from conversations import CLOCK, Case, answer, result, system, user
from harness import BY_NAME, render

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def call(name: str, arguments: dict[str, Any], identifier: str) -> dict[str, Any]:
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def text(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    return render(BY_NAME[name].source(), Case(messages=messages, tools=tools or []), TOKENS)[0]


CALLS = [
    system("Be brief."),
    user("Hi"),
    answer("", calls=[call("get_time", {"zone": "é"}, "aaaaaaaaa"), call("get_date", {}, "bbbbbbbbb")]),
    result("12:00 x") | {"tool_call_id": "aaaaaaaaa"},
    result("21"),
    answer("Noon."),
]


def test_mistral_writes_identifiers_and_blanks() -> None:
    """As mistral-common 1.13.1 does with its third SentencePiece vocabulary (which needs sentencepiece to be run)."""
    assert text("mistral", CALLS, [CLOCK]) == (
        '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_time", "description": "The time", '
        '"parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}}}]'
        "[/AVAILABLE_TOOLS][INST] Be brief.\n\nHi[/INST]"
        '[TOOL_CALLS] [{"name": "get_time", "arguments": {"zone": "é"}, "id": "aaaaaaaaa"}, '
        '{"name": "get_date", "arguments": {}, "id": "bbbbbbbbb"}]</s>'
        '[TOOL_RESULTS] {"content": "12:00 x", "call_id": "aaaaaaaaa"}[/TOOL_RESULTS]'
        '[TOOL_RESULTS] {"content": 21, "call_id": "bbbbbbbbb"}[/TOOL_RESULTS] Noon.</s>'
    )


def test_mistral_small_writes_identifiers() -> None:
    assert text("mistral_small", CALLS) == (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]"
        '[TOOL_CALLS]get_time[CALL_ID]aaaaaaaaa[ARGS]{"zone": "é"}[TOOL_CALLS]get_date[CALL_ID]bbbbbbbbb[ARGS]{}</s>'
        "[TOOL_RESULTS]aaaaaaaaa[TOOL_CONTENT]12:00 x[/TOOL_RESULTS]"
        "[TOOL_RESULTS]bbbbbbbbb[TOOL_CONTENT]21[/TOOL_RESULTS]Noon.</s>"
    )


def test_gemma4_finds_the_tool_by_its_identifier() -> None:
    """Results in another order than the calls."""
    swapped = [*CALLS[:3], result("21") | {"tool_call_id": "bbbbbbbbb"}, result("12") | {"tool_call_id": "aaaaaaaaa"}]
    assert text("gemma4n", [*swapped, CALLS[-1]]).endswith(
        '<|tool_response>response:get_date{value:<|"|>21<|"|>}<tool_response|>'
        '<|tool_response>response:get_time{value:<|"|>12<|"|>}<tool_response|>Noon.<turn|>\n'
    )


@pytest.mark.parametrize("name", ["deepseek3", "glm4"])
def test_models_that_do_not_think_lose_no_thoughts(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="does not think"):
        text(name, [user("Hi"), answer("Hello.", reasoning="A greeting.")])


@pytest.mark.parametrize("name", ["llama3_1", "mistral", "ministral", "gpt_oss"])
def test_a_text_beside_a_call_is_refused_not_dropped(name: str) -> None:
    thought = {"reasoning_content": "Hm."} if name == "gpt_oss" else {}
    with pytest.raises(jinja2.TemplateError):
        text(name, [user("Hi"), answer("Let me look.", calls=[call("f", {}, "aaaaaaaaa")]) | thought])


@pytest.mark.parametrize("name", ["glm4_moe", "glm4_7", "minimax2", "gemma4", "deepseek3_2", "deepseek4"])
def test_arguments_that_are_text_are_refused(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="must be a mapping"):
        text(name, [user("Hi"), answer("", calls=[call("f", "{}", "aaaaaaaaa")])])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mistral_small", "granite3", "gpt_oss", "llama3_2"])
def test_the_date(name: str) -> None:
    written = text(name, [user("Hi"), answer("Hello.")])
    dates = ("2025-03-09", "March 09, 2025", "09 Mar 2025")
    assert sum(date in written for date in dates) == 1


@pytest.mark.parametrize(
    "name",
    ["llama2", "ministral", "mistral_small", "cohere", "deepseek3", "glm4", "glm4_moe", "granite3", "gpt_oss"],
)
def test_a_default_system_message(name: str) -> None:
    """What a run sets as ``default_system`` is written as a system message is."""
    turns = [user("Hi"), answer("Hello.")]
    source = "{%- set default_system = 'Be brief.' %}" + BY_NAME[name].source()
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = text(name, [system("Be brief."), *turns])
    assert render(source, Case(messages=turns), tokens)[0] == expected
