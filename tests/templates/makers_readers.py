"""Oracles of maps/makers.py that call things by other names than we do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import readers
from conversations import Case
from harness import render

SHARED = Path("/work/shared/oracle/templates")
Reader = Callable[[str, Case, dict[str, str]], tuple[str, str]]


_IDS = re.compile(r', "id": "id\d+"')


def _rendered(name: str, case: Case, tokens: dict[str, str], **variables: Any) -> tuple[str, str]:
    source = (SHARED / name).read_text(encoding="utf-8")
    case = replace(case, variables=variables | case.variables)
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


def _thoughts_in_text(layout: str, name: str, case: Case, tokens: dict[str, str], **variables: Any) -> tuple[str, str]:
    """Templates that know no ``reasoning_content``: the thought stands in the content, in this layout."""

    def written(message: dict[str, Any]) -> dict[str, Any]:
        thought = message.get("reasoning_content")
        content = layout.format(thought, message["content"]) if thought else message["content"]
        return {key: value for key, value in message.items() if key != "reasoning_content"} | {"content": content}

    return _rendered(name, replace(case, messages=[written(message) for message in case.messages]), tokens, **variables)


def qwq(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """QwQ: this copy of its template closes the thought in the prompt unless it is told that the model thinks."""
    return _thoughts_in_text("<think>\n{}\n</think>\n\n{}", name, case, tokens, enable_thinking=True)


def nemotron(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Nemotron 3: ``truncate_history_thinking``."""
    folder = SHARED if (SHARED / name).exists() else readers.TRL
    source = (folder / name).read_text(encoding="utf-8")
    truncated = not case.variables.get("preserve_thinking", False)
    case = replace(case, variables=case.variables | {"truncate_history_thinking": truncated})
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


_QUEUED = {
    "set _ = tool_response_queue.ids.append(formatted_id)": "set tool_response_queue.ids = tool_response_queue.ids + "
    "[formatted_id]",
    "set tool_call_id = tool_response_queue.ids.pop(0) -%}": "set tool_call_id = tool_response_queue.ids[0] -%}"
    "{%- set tool_response_queue.ids = tool_response_queue.ids[1:] -%}",
}


def kimi(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Kimi K2, whose queue of identifiers is one that the sandbox of transformers allows."""
    source = (SHARED / name).read_text(encoding="utf-8")
    for theirs, allowed in _QUEUED.items():
        source = source.replace(theirs, allowed)
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


def told_to_think(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """A copy of a template that closes the thought in the prompt unless it is told that the model thinks."""
    return _rendered(name, case, tokens, enable_thinking=True)


def _numbered(case: Case, **names: str) -> Case:
    """The case with identifiers, which templates number anew, and with the tool's name beside each result."""
    messages, waiting, number = [], [], 0
    for message in case.messages:
        message = dict(message)
        if message.get("tool_calls"):
            message["tool_calls"] = [call | {"id": f"id{number + n}"} for n, call in enumerate(message["tool_calls"])]
            waiting, number = list(message["tool_calls"]), number + len(message["tool_calls"])
        if message["role"] == "tool":
            called = waiting.pop(0)
            message |= {"tool_call_id": called["id"], "name": called["function"]["name"]}
        messages.append({names.get(key, key): value for key, value in message.items()})
    return replace(case, messages=messages)


def named(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Templates that want each result to name its call."""
    return _rendered(name, _numbered(case), tokens)


def minimax3(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """MiniMax M3: ``thinking_mode``."""
    asked = case.variables.get("enable_thinking")
    modes = {} if asked is None else {"thinking_mode": "enabled" if asked else "disabled"}
    return _rendered(name, case, tokens, **modes)


def kimi_k3(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Kimi K3: ``thinking``."""
    return _rendered(name, case, tokens, thinking=case.variables.get("enable_thinking", True))


def cohere2(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Command: its text ends with a prompt where it is none, and North Code's ``reasoning``."""
    asked = case.variables.get("enable_thinking", True)
    text, prompt = _rendered(name, _numbered(case), tokens, enable_thinking=True, reasoning=asked)
    opening = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    return text.removesuffix("<|START_THINKING|><|END_THINKING|>").removesuffix(opening), prompt


def firefunction(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """FireFunction: functions and the day are variables of its own, and its text always ends with a prompt."""
    functions = json.dumps([tool["function"] for tool in case.tools], indent=4, ensure_ascii=False)
    text, prompt = _rendered(name, case, tokens, functions=functions, datetime="2025-03-09")
    return text.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n"), prompt


def apertus(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Apertus: thoughts are blocks of a content, and only the next question ends an answer."""

    def blocks(message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] != "assistant":
            return message
        thought = message.get("reasoning_content")
        found = [{"type": "thoughts", "text": thought}] if thought else []
        found.append({"type": "response", "text": message["content"]})
        return message | {"content": {"blocks": found}}

    if any("reasoning_content" in message for message in case.messages):
        case = replace(case, messages=[blocks(message) for message in case.messages])
    text, prompt = _rendered(name, case, tokens)
    return text + ("" if case.messages[-1].get("tool_calls") else "<|assistant_end|>"), prompt


def apriel1_6(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Apriel 1.6: with ``training_prompt`` the last answer ends as all others do."""
    return _rendered(name, case, tokens, training_prompt=True)


def functionary(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Functionary: without ``safe``, which makes HTML of what it is joined to."""
    source = (SHARED / name).read_text(encoding="utf-8").replace("|safe", "")
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


def written(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Templates that take the arguments of a call as text only."""

    def changed(message: dict[str, Any]) -> dict[str, Any]:
        if not message.get("tool_calls"):
            return message
        calls = []
        for call in message["tool_calls"]:
            arguments = call["function"]["arguments"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(call | {"function": call["function"] | {"arguments": text}})
        return message | {"tool_calls": calls}

    return _rendered(name, replace(case, messages=[changed(message) for message in case.messages]), tokens)


def apriel(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Apriel 1.5, with an empty system message where there is none: tools make it write its own twice otherwise."""
    case = _numbered(case)
    if case.messages[0]["role"] != "system":
        case = replace(case, messages=[{"role": "system", "content": ""}, *case.messages])
    text, prompt = _thoughts_in_text("{}\n[BEGIN FINAL RESPONSE]\n{}\n[END FINAL RESPONSE]", name, case, tokens)
    return _IDS.sub("", text), _IDS.sub("", prompt)


READERS: dict[str, Reader] = {
    "functionary": functionary,
    "named": named,
    "minimax3": minimax3,
    "kimi-k3": kimi_k3,
    "cohere2": cohere2,
    "firefunction": firefunction,
    "apertus": apertus,
    "written": written,
    "apriel": apriel,
    "apriel1.6": apriel1_6,
    "nemotron-v2": partial(_thoughts_in_text, "{}\n</think>\n\n{}"),
    "told-to-think": told_to_think,
    "smollm3": partial(_thoughts_in_text, "<think>\n{}\n</think>\n{}"),
    "qwq": qwq,
    "nemotron": nemotron,
    "kimi": kimi,
}
