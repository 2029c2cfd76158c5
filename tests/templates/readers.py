"""Oracles that are not Jinja files, or that take a conversation in another shape than ours."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from conversations import Case
from harness import render

SHARED = Path("/work/shared/oracle/templates")
TRL = next(Path("/work/oracles").glob("**/trl/chat_templates"), Path("/work/oracles/trl/chat_templates"))
MISTRAL_COMMON = Path("/work/oracles-mc")

Message = dict[str, Any]


def _with(change: Callable[[Message], Message], name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """A file of either folder, given other messages."""
    case = replace(case, messages=[change(message) for message in case.messages])
    file = SHARED / name if (SHARED / name).exists() else TRL / name
    source = file.read_text(encoding="utf-8")
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


def _called(change: Callable[[Any], Any], message: Message) -> Message:
    """The message with the arguments of its calls changed."""
    calls = message.get("tool_calls", ())
    functions = [call["function"] | {"arguments": change(call["function"]["arguments"])} for call in calls]
    changed = [call | {"function": function} for call, function in zip(calls, functions, strict=True)]
    return message | ({"tool_calls": changed} if changed else {})


def _parsed(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _strict(message: Message) -> Message:
    """The message; Gemma 4's newest template refuses arguments that are text, the older ones write what they can."""
    if any(isinstance(call["function"]["arguments"], str) for call in message.get("tool_calls", ())):
        raise TypeError("arguments that are text")
    return message


def _thoughts_in_parts(message: Message) -> Message:
    """Mistral's: reasoning is a part of the content."""
    message = _called(_parsed, message)
    thought = message.pop("reasoning_content", None)
    if thought is None:
        return message
    text = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return message | {"content": [{"type": "thinking", "thinking": thought}, *text]}


def _thinking(message: Message) -> Message:
    """OpenAI's: reasoning is called thinking."""
    message = _called(_parsed, message)
    thought = message.pop("reasoning_content", None)
    return message if thought is None else message | {"thinking": thought}


def thoughts_in_parts(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    return _with(_thoughts_in_parts, name, case, tokens)


def thinking(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    return _with(_thinking, name, case, tokens)


def parsed(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Templates that take arguments as an object only."""
    return _with(lambda message: _called(_parsed, message), name, case, tokens)


def closed_by_next(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """GLM's: what ends a turn is the next turn's beginning, which after the last turn is ours to teach."""
    text, prompt = _with(dict, name, case, tokens)
    return text + ("<|observation|>" if case.messages[-1].get("tool_calls") else "<|user|>"), prompt


def without_opening(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """A model that does not think, held against the template of its brother that always does."""
    text, prompt = parsed(name, case, tokens)
    return text, prompt.removesuffix("<think>\n")


def with_empty_thought(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Gemma 4's: the empty thought, which its prompts hold, stands in the text as well where the answer has none."""
    text, prompt = _with(_strict, name, case, tokens)
    before = prompt.removesuffix("<|channel>thought\n<channel|>")
    if before == prompt or text.startswith(before + "<|channel>") or case.messages[-1].get("reasoning_content"):
        return text, prompt
    return prompt + text.removeprefix(before), prompt


def tools_of_model_card(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """DeepSeek V3.1's: the model card says how to write the tools into the system message."""
    if not case.tools:
        return parsed(name, case, tokens)
    lines = ["## Tools", "You have access to the following tools:", ""]
    for tool in case.tools:
        function = tool["function"]
        parameters = json.dumps(function["parameters"], ensure_ascii=False)
        lines += [f"### {function['name']}", f"Description: {function['description']}", ""]
        lines += [f"Parameters: {parameters}", ""]
    lines += [
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
        "{additional_tool_calls}<｜tool▁calls▁end｜>",
        "",
        "Where:",
        "- `tool_call_name` must be an exact match to one of the available tools",
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema",
        "- For multiple tool calls, chain them directly without separators or spaces",
        "",
    ]
    has_system = case.messages[0]["role"] == "system"
    system = [case.messages[0]["content"]] if has_system and case.messages[0]["content"] else []
    content = "\n\n".join([*system, "\n".join(lines)])
    messages = [{"role": "system", "content": content}, *case.messages[has_system:]]
    return parsed(name, replace(case, messages=messages, tools=[]), tokens)


def _granite(message: Message) -> Message:
    """The message as text: the template knows neither calls nor thoughts, its system messages say how they look."""
    content, thought = message["content"], message.get("reasoning_content")
    if thought:
        content = f"<think>{thought}</think><response>{content}</response>"
    calls = [
        {"name": call["function"]["name"], "arguments": _parsed(call["function"]["arguments"])}
        for call in message.get("tool_calls", ())
    ]
    return {
        "role": message["role"],
        "content": content + (f"<|tool_call|>{json.dumps(calls, ensure_ascii=False)}" if calls else ""),
    }


def granite(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Granite 3's, which calls ``enable_thinking`` thinking."""
    variables = {"thinking": case.variables.get("enable_thinking", False)}
    return _with(_granite, name, replace(case, variables=variables), tokens)


def processor(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """The ``chat_template`` in the source of a processor of transformers."""
    import transformers

    folder = Path(transformers.__file__).parent / "models" / name
    (file,) = folder.glob("processing_*.py")
    (source,) = re.findall(r'^chat_template = (".*")$', file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    case = replace(case, messages=[_called(_parsed, message) for message in case.messages])
    source = json.loads(source.replace("\\'", "'"))
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


_NO_ID = "000000000"
_IDS = re.compile(rf', "(call_)?id": "{_NO_ID}"|\[CALL_ID\]{_NO_ID}|(?<=\[TOOL_RESULTS\]){_NO_ID}')


def _identified(message: Message) -> Message:
    """The message with an identifier where it lacks one; Mistral's insist on them, and ours leaves them out."""
    if message["role"] == "tool":
        return {"tool_call_id": _NO_ID} | message
    calls = [{"id": _NO_ID} | call for call in message.get("tool_calls", ())]
    return message | ({"tool_calls": calls} if calls else {})


def mistral(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Mistral's Jinja files."""
    text, prompt = _with(lambda message: _identified(_called(_parsed, message)), name, case, tokens)
    return _IDS.sub("", text), _IDS.sub("", prompt)


def mistral_common(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Mistral's own tokenization, as text."""
    sys.path.append(str(MISTRAL_COMMON))
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    def text(messages: list[Message], mode: str) -> str:
        given = [_identified(_called(_written, message)) for message in messages]
        request = ChatCompletionRequest.from_openai(given, tools=case.tools or None)
        return _IDS.sub("", _tokenizer(name, mode).encode_chat_completion(request).text)

    try:
        return text(case.messages, "finetuning"), text(case.messages[:-1], "test")
    except (MistralCommonException, ValueError, AssertionError) as error:
        raise TypeError(f"mistral-common refuses: {error}") from error


def _written(arguments: Any) -> str:
    return json.dumps(_parsed(arguments), ensure_ascii=False)


@cache
def _tokenizer(name: str, mode: str) -> Any:
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.from_file(str(MISTRAL_COMMON / "mistral_common" / "data" / name), ValidationMode(mode))
