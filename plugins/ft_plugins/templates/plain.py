"""Templates of plain text, such as ``USER: ... ASSISTANT: ...``.

Those without stop tokens end an answer with the tokenizer's own end-of-sequence token.
"""

from __future__ import annotations

from typing import Any

from ft_plugins.templates.separators import BOS, EOS, Separators
from ftcore.api.components import ChatTemplate

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_XUANYUAN_SYSTEM = (
    "以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，"
    "会对人类提出的问题给出有帮助、高质量、详细和礼貌的回答，并且总是拒绝参与 与不道德、"
    "不安全、有争议、政治敏感等相关的话题、问题和指示。"
)
_INDEX_SYSTEM = (
    "你是由哔哩哔哩自主研发的大语言模型，名为“Index”。"
    "你能够根据用户传入的信息，帮助用户完成指定的任务，并生成恰当的、符合要求的回复。"
)
_BREEZE_SYSTEM = (
    "You are a helpful AI assistant built by MediaTek Research. "
    "The user you are helping speaks Traditional Chinese and comes from Taiwan."
)

_MEDIA: dict[str, Any] = {"image": "<image>\n", "video": "<video>\n"}
_CHATML: dict[str, Any] = {
    "system": ("<|im_start|>system\n", "<|im_end|>\n"),
    "system_when": "given",
    "user": ("<|im_start|>user\n", "<|im_end|>\n"),
    "answer": "<|im_start|>assistant\n",
    "stop": "<|im_end|>",
    "gap": "\n",
}


def _plain(
    name: str,
    summary: str,
    *,
    tokens: tuple[str, ...] = (),
    default_system: str | None = None,
    aliases: tuple[str, ...] = (),
    **separators: Any,
) -> ChatTemplate:
    """A template from its stop tokens and fields of `Separators`."""
    return ChatTemplate(
        name=name,
        summary=summary,
        text=Separators(**separators).source(default_system),
        stop=tokens,
        default_system=default_system,
        aliases=aliases,
    )


TEMPLATES: tuple[ChatTemplate, ...] = (
    _plain(
        "default",
        "Human, Assistant and System in words, for models without a template of their own",
        start=BOS,
        system=("System: ", EOS + "\n"),
        user=("Human: ", EOS + "\n"),
        answer="Assistant:",
        gap="\n",
    ),
    _plain("empty", "Nothing but the contents; the model is not taught to stop", stop=""),
    _plain(
        "fewshot",
        "Contents with an empty line between them, for prompts with examples",
        system=("", "\n\n"),
        stop="\n\n" + EOS,
        earlier_stop="\n\n",
    ),
    _plain(
        "alpaca",
        "Stanford Alpaca",
        default_system=_ALPACA_SYSTEM,
        start=BOS,
        system=("", "\n\n"),
        user=("### Instruction:\n", "\n\n"),
        answer="### Response:\n",
        gap="\n\n",
    ),
    _plain(
        "vicuna",
        "Vicuna 1.1 and the LLaVA models made from it",
        default_system=_VICUNA_SYSTEM,
        aliases=("llava", "llava_next", "llava_next_video", "video_llava"),
        start=BOS,
        system=("", " "),
        user=("USER: ", " "),
        answer="ASSISTANT:",
        lead=" ",
        **_MEDIA,
    ),
    _plain(
        "zephyr",
        "Zephyr",
        system_when="given",
        system=("<|system|>\n", EOS + "\n"),
        user=("<|user|>\n", EOS + "\n"),
        answer="<|assistant|>\n",
        gap="\n",
    ),
    _plain(
        "breeze",
        "Breeze",
        default_system=_BREEZE_SYSTEM,
        start=BOS + " ",
        system=("", " "),
        system_when="always",
        user=(" [INST] ", " [/INST] "),
        earlier_stop="",
    ),
    _plain(
        "openchat",
        "OpenChat 3.5",
        tokens=("<|end_of_turn|>",),
        start=BOS,
        system=("", "<|end_of_turn|>"),
        user=("GPT4 Correct User: ", "<|end_of_turn|>"),
        answer="GPT4 Correct Assistant:",
        lead=" ",
        stop="<|end_of_turn|>",
    ),
    _plain(
        "openchat-3.6",
        "OpenChat 3.6",
        tokens=("<|eot_id|>",),
        system_when="given",
        start=BOS,
        system=("<|start_header_id|>System<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>GPT4 Correct User<|end_header_id|>\n\n", "<|eot_id|>"),
        answer="<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n",
        stop="<|eot_id|>",
        trim=True,
    ),
    _plain(
        "starchat",
        "StarChat",
        tokens=("<|end|>",),
        system=("<|system|>\n", "<|end|>\n"),
        system_when="always",
        user=("<|user|>\n", "<|end|>\n"),
        answer="<|assistant|>",
        lead="\n",
        stop="<|end|>",
        gap="\n",
    ),
    _plain(
        "solar",
        "SOLAR 10.7B",
        system=("### System:\n", "\n\n"),
        user=("### User:\n", "\n\n"),
        answer="### Assistant:\n",
        earlier_stop="",
    ),
    _plain(
        "xuanyuan",
        "XuanYuan",
        default_system=_XUANYUAN_SYSTEM,
        start=BOS,
        system=("", "\n "),
        user=("Human: ", " "),
        answer="Assistant:",
        lead=" ",
    ),
    _plain("yuan", "Yuan 2.0", tokens=("<eod>",), system=("", "\n"), user=("", "<sep>"), stop="<eod>", gap="\n"),
    _plain(
        "index",
        "Index 1.9B",
        default_system=_INDEX_SYSTEM,
        system=("<unk>", ""),
        system_when="always",
        user=("reserved_0", ""),
        answer="reserved_1",
        earlier_stop="",
    ),
    _plain(
        "llava_next_mistral",
        "LLaVA-NeXT on Mistral",
        aliases=("llava_next_video_mistral",),
        start=BOS,
        system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        system_when="given",
        user=("[INST] ", " [/INST]"),
        lead=" ",
        gap=" ",
        **_MEDIA,
    ),
    _plain(
        "llava_next_llama3",
        "LLaVA-NeXT on Llama 3",
        tokens=("<|eot_id|>", "<|end_of_text|>"),
        start=BOS,
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        system_when="given",
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        answer="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop="<|eot_id|>",
        trim=True,
        **_MEDIA,
    ),
    _plain(
        "llava_next_yi",
        "LLaVA-NeXT on Yi",
        tokens=("<|im_end|>",),
        aliases=("llava_next_video_yi",),
        **_CHATML,
        **_MEDIA,
    ),
    _plain(
        "llava_next_qwen",
        "LLaVA-NeXT on Qwen 1.5",
        tokens=("<|im_end|>", "<|endoftext|>"),
        default_system="You are a helpful assistant.",
        **_CHATML,
        **_MEDIA,
    ),
    _plain(
        "paligemma",
        "PaliGemma, which reads a prompt and a line break",
        start=BOS,
        system=("", " "),
        system_inside=True,
        user=("", "\n"),
    ),
    _plain(
        "paligemma_chat",
        "PaliGemma with Gemma's turns",
        tokens=("<end_of_turn>",),
        start=BOS,
        system=("", "\n\n"),
        system_inside=True,
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        answer="<start_of_turn>model\n",
        stop="<end_of_turn>",
        gap="\n",
        trim=True,
    ),
)
