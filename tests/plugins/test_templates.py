"""The built-in templates against what model makers publish, character for character."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ft_plugins.templates import TEMPLATES

BY_NAME = {template.name: template for template in TEMPLATES}

PLAIN = [
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "你好\n"},
    {"role": "assistant", "content": "再见"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *PLAIN[:2]]


def render(name: str, messages: list[dict[str, Any]], prompt: bool = False, **variables: Any) -> str:
    (text,), _ = render_jinja_template(
        conversations=[messages],
        chat_template=BY_NAME[name].source(),
        add_generation_prompt=prompt,
        bos_token="<|begin_of_text|>",
        **variables,
    )
    return text


QWEN_DEFAULT = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOLLM_DEFAULT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CHATML = (
    "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\n你好\n<|im_end|>\n<|im_start|>assistant\n再见<|im_end|>\n"
)
CHATML_SYSTEM = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n hi <|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n"
)


@pytest.mark.parametrize(
    ("name", "plain", "with_system", "header"),
    [
        ("chatml", CHATML, CHATML_SYSTEM, "<|im_start|>assistant\n"),
        ("qwen", QWEN_DEFAULT + CHATML, CHATML_SYSTEM, "<|im_start|>assistant\n"),
        ("smollm2", SMOLLM_DEFAULT + CHATML, CHATML_SYSTEM, "<|im_start|>assistant\n"),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n再见<|eot_id|>",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "chatglm",  # the closing <|user|> is ours: it teaches the model to stop
            "[gMASK]sop<|user|>\n  hi <|assistant|>\n Hello.<|user|>\n 你好\n<|assistant|>\n 再见<|user|>",
            "[gMASK]sop<|system|>\n Be brief.<|user|>\n  hi <|assistant|>\n Hello.<|user|>",
            "<|assistant|>",
        ),
    ],
)
def test_conversations(name: str, plain: str, with_system: str, header: str) -> None:
    assert render(name, PLAIN) == plain
    assert render(name, SYSTEM) == with_system
    before_answer = plain[: plain.rindex(header) + len(header)]
    assert render(name, PLAIN[:-1], prompt=True) == before_answer


def test_qwen_tools() -> None:
    tool = {"type": "function", "function": {"name": "w", "description": "<é>", "parameters": {}}}
    call = {"type": "function", "function": {"name": "w", "arguments": {"c": "é"}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "so", "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "r"},
    ]
    written = '<tool_call>\n{"name": "w", "arguments": {"c": "é"}}\n</tool_call>'
    assert render("qwen", messages, tools=[tool]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "w", "description": "<é>", "parameters": {}}}'
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
        "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{written}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        f"<|im_start|>assistant\nso\n{written}\n{written}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\nr<|im_end|>\n"
    )


@pytest.mark.parametrize("name", ["chatml", "chatglm", "llama3", "qwen", "smollm2"])
def test_table(name: str) -> None:
    template = BY_NAME[name]
    assert template.stop
    assert template.stop[0] in template.source()
    if template.default_system:
        assert template.default_system in render(name, PLAIN)
        assert template.default_system not in render(name, PLAIN, default_system="")
        assert render(name, PLAIN, default_system="X") == render(name, [{"role": "system", "content": "X"}, *PLAIN])
    assert ("tool_calls" in template.source()) == bool(template.tool_dialect)


def test_names_are_unique() -> None:
    names = [name for template in TEMPLATES for name in (template.name, *template.aliases)]
    assert len(names) == len(set(names))
