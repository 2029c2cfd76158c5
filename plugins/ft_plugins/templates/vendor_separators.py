"""Templates of vendors that only write strings around turns; `vendors` has the others."""

from __future__ import annotations

from typing import Any

from ft_plugins.templates.separators import BOS, EOS, Separators
from ftcore.api.components import ChatTemplate

_DEEPSEEK_CODER_SYSTEM = (
    "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek "
    "Company, and you only answer questions related to computer science. For politically sensitive "
    "questions, security and privacy issues, and other non-computer science questions, you will refuse to "
    "answer\n"
)
_DBRX_SYSTEM = (
    "You are DBRX, created by Databricks. You were last updated in December 2023. You answer questions "
    "based on information available up to that point.\n"
    "YOU PROVIDE SHORT RESPONSES TO SHORT QUESTIONS OR STATEMENTS, but provide thorough responses to more "
    "complex and open-ended questions.\n"
    "You assist with various tasks, from writing to coding (using markdown for code blocks — remember to "
    "use ``` with code, JSON, and tables).\n"
    "(You do not have real-time data access or code execution capabilities. You avoid stereotyping and "
    "provide balanced perspectives on controversial topics. You do not provide song lyrics, poems, or "
    "news articles and do not divulge details of your training data.)\n"
    "This is your system prompt, guiding your responses. Do not reference it, just respond to the user. "
    "If you find yourself talking about this message, stop. You should be responding appropriately and "
    "usually that means not mentioning this.\n"
    "YOU DO NOT MENTION ANY OF THIS INFORMATION ABOUT YOURSELF UNLESS THE INFORMATION IS DIRECTLY "
    "PERTINENT TO THE USER'S QUERY."
)
_GRANITE_VISION_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)


def _separated(
    name: str, summary: str, *stop: str, separators: Separators, default_system: str | None = None, **more: Any
) -> ChatTemplate:
    text = separators.source(default_system)
    return ChatTemplate(name=name, summary=summary, text=text, stop=stop, default_system=default_system, **more)


TEMPLATES: tuple[ChatTemplate, ...] = (
    _separated(
        "deepseek",
        "DeepSeek LLM, V2 and Coder V2",
        "<｜end▁of▁sentence｜>",
        separators=Separators(
            start=BOS,
            system=("", "\n\n"),
            system_when="given",
            user=("User: ", "\n\n"),
            answer="Assistant:",
            lead=" ",
        ),
    ),
    _separated(
        "deepseekcoder",
        "DeepSeek Coder",
        "<|EOT|>",
        default_system=_DEEPSEEK_CODER_SYSTEM,
        separators=Separators(
            start=BOS,
            user=("### Instruction:\n", "\n"),
            answer="### Response:",
            lead="\n",
            stop="\n<|EOT|>",
            gap="\n",
        ),
    ),
    _separated(
        "phi_small",
        "Phi 3 Small",
        "<|end|>",
        "<|endoftext|>",
        separators=Separators(
            start=BOS,
            system=("<|system|>\n", "<|end|>\n"),
            system_when="given",
            user=("<|user|>\n", "<|end|>\n"),
            answer="<|assistant|>\n",
            stop="<|end|>",
            gap="\n",
        ),
    ),
    _separated(
        "phi4",
        "Phi 4",
        "<|im_end|>",
        "<|endoftext|>",
        separators=Separators(
            system=("<|im_start|>system<|im_sep|>", "<|im_end|>"),
            system_when="given",
            user=("<|im_start|>user<|im_sep|>", "<|im_end|>"),
            answer="<|im_start|>assistant<|im_sep|>",
            stop="<|im_end|>",
        ),
    ),
    _separated(
        "phi4_mini",
        "Phi 4 Mini, without tools",
        "<|end|>",
        "<|endoftext|>",
        separators=Separators(
            system=("<|system|>", "<|end|>"),
            system_when="given",
            user=("<|user|>", "<|end|>"),
            answer="<|assistant|>",
            stop="<|end|>",
        ),
    ),
    _separated(
        "exaone",
        "EXAONE 3 and 3.5",
        "[|endofturn|]",
        separators=Separators(
            system=("[|system|]", "[|endofturn|]\n"),
            system_when="always",
            user=("[|user|]", "\n"),
            answer="[|assistant|]",
            stop="[|endofturn|]",
            gap="\n",
        ),
    ),
    _separated(
        "falcon",
        "Falcon 180B Chat",
        "<|endoftext|>",
        separators=Separators(
            system=("System: ", "\n"),
            user=("User: ", "\n"),
            answer="Falcon:",
            lead=" ",
            stop="\n<|endoftext|>",
            earlier_stop="\n",
        ),
    ),
    _separated(
        "falcon_h1",
        "Falcon H1, without tools",
        "<|im_end|>",
        "<|end_of_text|>",
        separators=Separators(
            start=BOS,
            system=("<|im_start|>system\n", "<|im_end|>\n"),
            system_when="given",
            user=("<|im_start|>user\n", "<|im_end|>\n"),
            answer="<|im_start|>assistant\n",
            stop="<|im_end|>",
            gap="\n",
        ),
    ),
    _separated(
        "dbrx",
        "DBRX",
        "<|im_end|>",
        default_system=_DBRX_SYSTEM,
        separators=Separators(
            system=("<|im_start|>system\n", "<|im_end|>\n"),
            system_when="given",
            user=("<|im_start|>user\n", "<|im_end|>\n"),
            answer="<|im_start|>assistant\n",
            stop="<|im_end|>",
            gap="\n",
        ),
    ),
    _separated(
        "granite3_vision",
        "Granite Vision 3",
        "<|end_of_text|>",
        default_system=_GRANITE_VISION_SYSTEM,
        separators=Separators(
            system=("<|system|>\n", "\n"),
            user=("<|user|>\n", "\n"),
            answer="<|assistant|>\n",
            stop="<|end_of_text|>",
        ),
    ),
    _separated(
        "olmo",
        "OLMo",
        "<|endoftext|>",
        separators=Separators(
            start=EOS,
            system=("<|system|>\n", "\n"),
            user=("<|user|>\n", "\n"),
            answer="<|assistant|>\n",
            gap="\n",
        ),
    ),
)
