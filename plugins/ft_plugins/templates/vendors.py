"""Templates with vendor-specific control tokens: Llama, GLM, Mistral, Gemma, DeepSeek and others."""

from __future__ import annotations

from ft_plugins.templates import vendor_separators
from ft_plugins.templates.table import template
from ftcore.api.components import ChatTemplate

_GLM = ("<|user|>", "<|observation|>", "<|endoftext|>")
_LLAMA3 = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
_DEEPSEEK = ("<｜end▁of▁sentence｜>",)
_GRANITE4_SYSTEM = "You are a helpful assistant. Please ensure responses are professional, accurate, and safe."
_LLAMA2_ZH_SYSTEM = "You are a helpful assistant. 你是一个乐于助人的助手。"
_MINIMAX1_SYSTEM = "You are a helpful assistant created by Minimax based on MiniMax-M1 model."
_MINISTRAL3_SYSTEM = (
    "# HOW YOU SHOULD THINK AND ANSWER\n\nFirst draft your thinking process (inner monologue) until you arrive at a "
    "response. Format your response using Markdown, and use LaTeX for any mathematical equations. Write both your "
    "thoughts and the response in the same language as the input.\n\nYour thinking process must follow the template "
    "below:[THINK]Your thoughts or/and draft, like working through an exercise on scratch paper. Be as casual and as "
    "long as you want until you are confident to generate the response to the user.[/THINK]Here, provide a "
    "self-contained response."
)

_LLAMA = (
    template("llama2", "Llama 2, without the long default system message", "</s>"),
    template(
        "llama2_zh",
        "Chinese Llama 2 and Alpaca 2",
        "</s>",
        file="llama2",
        default_system=_LLAMA2_ZH_SYSTEM,
    ),
    template("llama3", "Llama 3, as first published: no date, no tools", "<|eot_id|>", "<|end_of_text|>"),
    template("llama3_1", "Llama 3.1 and 3.3: dated, with tools", *_LLAMA3, tool_dialect="json", aliases=("llama3_3",)),
    template(
        "llama3_2",
        "Llama 3.2 and its vision models: today's date, with tools",
        *_LLAMA3,
        file="llama3_1",
        settings={"today": True},
        tool_dialect="json",
        aliases=("mllama",),
    ),
    template("llama4", "Llama 4", "<|eot|>", "<|eom|>", "<|end_of_text|>", tool_dialect="json"),
)
_MISTRAL = (
    template(
        "mistral",
        "Mistral 7B v0.3 and others of the third tokenizer",
        "</s>",
        file="mistral",
        settings={"space": " "},
        tool_dialect="json",
    ),
    template(
        "ministral",
        "Mistral Nemo, Ministral and Pixtral: the third tokenizer, Tekken",
        "</s>",
        file="mistral",
        settings={"space": ""},
        tool_dialect="json",
        aliases=("pixtral",),
    ),
    template("mistral_small", "Mistral Small 3", "</s>", tool_dialect="json"),
    template("ministral3", "Ministral 3", "</s>", tool_dialect="json", thinking=True),
    template(
        "ministral3_reasoning",
        "Ministral 3 Reasoning, which is told how to think",
        "</s>",
        file="ministral3",
        default_system=_MINISTRAL3_SYSTEM,
        tool_dialect="json",
        thinking=True,
    ),
)
_GEMMA = (
    template(
        "gemma",
        "Gemma 1 to 3; the system message stands in the first user turn",
        "<end_of_turn>",
        "<eos>",
        aliases=("gemma2", "gemma3", "gemma3n"),
    ),
    template(
        "gemma4",
        "Gemma 4, the large models, which write an empty thought when they do not think",
        "<turn|>",
        "<|tool_response>",
        "<eos>",
        file="gemma4",
        settings={"empty_thought": True},
        tool_dialect="gemma4",
        thinking=True,
    ),
    template(
        "gemma4n",
        "Gemma 4 E2B and E4B",
        "<turn|>",
        "<|tool_response>",
        "<eos>",
        file="gemma4",
        settings={"empty_thought": False},
        tool_dialect="gemma4",
        thinking=True,
    ),
)
_DEEPSEEKS = (
    template("deepseek3", "DeepSeek V3", *_DEEPSEEK, file="deepseek3", settings={"opening": ""}),
    template(
        "deepseekr1",
        "DeepSeek R1 and its distilled models, which always think",
        *_DEEPSEEK,
        file="deepseek3",
        settings={"opening": "<think>\n"},
        thinking=True,
    ),
    template("deepseek3_1", "DeepSeek V3.1", *_DEEPSEEK, tool_dialect="deepseek", thinking=True),
    template(
        "deepseek3_2",
        "DeepSeek V3.2",
        *_DEEPSEEK,
        file="deepseek3_2",
        settings={"block": "function_calls"},
        tool_dialect="dsml",
        thinking=True,
    ),
    template(
        "deepseek4",
        "DeepSeek V4",
        *_DEEPSEEK,
        file="deepseek3_2",
        settings={"block": "tool_calls"},
        tool_dialect="dsml",
        thinking=True,
    ),
)
_GLMS = (
    template("chatglm", "ChatGLM3", "<|user|>", "<|observation|>", aliases=("chatglm3",)),
    template(
        "glm4",
        "GLM 4 and GLM OCR",
        *_GLM,
        file="glm4",
        settings={"opening": "", "tagged": False},
        tool_dialect="glm4",
        aliases=("glm_ocr",),
    ),
    template(
        "glm4v",
        "GLM 4.1V, whose thoughts and answers stand in tags",
        *_GLM,
        file="glm4",
        settings={"opening": "", "tagged": True},
        tool_dialect="glm4",
        thinking=True,
    ),
    template(
        "glmz1",
        "GLM Z1, which always thinks",
        *_GLM,
        file="glm4",
        settings={"opening": "\n<think>", "tagged": False},
        tool_dialect="glm4",
        thinking=True,
    ),
    template(
        "glm4_moe",
        "GLM 4.5, 4.5V and 4.6",
        *_GLM,
        file="glm4_moe",
        settings={"line": "\n"},
        tool_dialect="xml",
        thinking=True,
        aliases=("glm4_5v",),
    ),
    template(
        "glm4_7",
        "GLM 4.7",
        *_GLM,
        file="glm4_moe",
        settings={"line": ""},
        tool_dialect="xml",
        thinking=True,
    ),
)
_OTHERS = (
    template("cohere", "Command R and Aya Expanse, without tools", "<|END_OF_TURN_TOKEN|>"),
    template("phi", "Phi 3 and 3.5", "<|end|>", "<|endoftext|>"),
    template("granite3", "Granite 3", "<|end_of_text|>", tool_dialect="json", thinking=True),
    template(
        "granite4",
        "Granite 4.0",
        "<|end_of_text|>",
        file="granite4",
        default_system=_GRANITE4_SYSTEM,
        tool_dialect="json",
    ),
    template(
        "granite4_1",
        "Granite 4.1, without a default system message",
        "<|end_of_text|>",
        file="granite4",
        settings={"default_system": ""},
        tool_dialect="json",
    ),
    template(
        "minimax1",
        "MiniMax M1",
        "<end_of_sentence>",
        default_system=_MINIMAX1_SYSTEM,
        tool_dialect="json",
    ),
    template(
        "minimax2",
        "MiniMax M2",
        "[e~[",
        default_system="You are a helpful assistant.",
        tool_dialect="xml",
        thinking=True,
    ),
    template(
        "gpt_oss",
        "gpt-oss, in OpenAI's harmony format",
        "<|return|>",
        "<|call|>",
        tool_dialect="harmony",
        thinking=True,
    ),
)
TEMPLATES: tuple[ChatTemplate, ...] = (
    *_LLAMA,
    *_MISTRAL,
    *_GEMMA,
    *_DEEPSEEKS,
    *_GLMS,
    *_OTHERS,
    *vendor_separators.TEMPLATES,
)
