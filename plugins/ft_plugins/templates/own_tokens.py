"""Templates of Chinese makers and others with control tokens of their own: Hunyuan, Ling, Kimi, Seed, ERNIE, Youtu."""

from __future__ import annotations

from typing import Any

from ft_plugins.templates.separators import BOS, EOS, Separators
from ft_plugins.templates.table import template
from ftcore.api.components import ChatTemplate

_KIMI_IMAGE = {"image": "<|media_start|>image<|media_content|><|media_pad|><|media_end|>"}
_SEED_CODER_SYSTEM = (
    "You are an AI programming assistant, utilizing the Seed-Coder model, developed by ByteDance Seed, and you only "
    "answer questions related to computer science. For politically sensitive questions, security and privacy issues, "
    "and other non-computer science questions, you will refuse to answer.\n\n"
)
_TELECHAT2_SYSTEM = (
    "你是中国电信星辰语义大模型，英文名是TeleChat，"
    "你是由中电信人工智能科技有限公司和中国电信人工智能研究院（TeleAI）研发的人工智能助手。"
)
_YI_VL_SYSTEM = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. "
    "Read all the images carefully, and respond to the human's questions with informative, helpful, detailed and "
    "polite answers. 这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
)


def _between(
    name: str,
    summary: str,
    *stop: str,
    default_system: str | None = None,
    aliases: tuple[str, ...] = (),
    **separators: Any,
) -> ChatTemplate:
    """A template from fields of `Separators`."""
    source = Separators(**separators).source(default_system)
    return ChatTemplate(
        name=name, summary=summary, text=source, stop=stop, default_system=default_system, aliases=aliases
    )


TEMPLATES: tuple[ChatTemplate, ...] = (
    template("hunyuan", "Hunyuan A13B and the dense 7B", "<|eos|>", aliases=("hy_dense_7b",)),
    _between(
        "hunyuan_small",
        "Hunyuan's small dense models, 0.5B to 7B",
        "<｜hy_place▁holder▁no▁2｜>",
        aliases=("hy_dense_1_8b",),
        start="<｜hy_begin▁of▁sentence｜>",
        system=("", "<｜hy_place▁holder▁no▁3｜>"),
        system_when="given",
        user=("<｜hy_User｜>", ""),
        answer="<｜hy_Assistant｜>",
        stop="<｜hy_place▁holder▁no▁2｜>",
    ),
    template("hy3", "Hunyuan 3", "<｜hy_eos:opensource｜>", tool_dialect="xml", thinking=True),
    _between(
        "bailing",
        "Ling and Ring, the first",
        "<|endoftext|>",
        system=("<role>SYSTEM</role>", ""),
        system_when="given",
        user=("<role>HUMAN</role>", ""),
        answer="<role>ASSISTANT</role>",
        stop="<|endoftext|>",
        earlier_stop="",
    ),
    template("bailing_v2", "Ling 2", "<|role_end|>", file="bailing", tool_dialect="json", thinking=True),
    template("bailing_v3", "Ling 3", "<|role_end|>", tool_dialect="xml", thinking=True, aliases=("ling3",)),
    template("moonlight", "Moonlight", "<|im_end|>", file="kimi", default_system="You are a helpful assistant"),
    template(
        "kimi_vl",
        "Kimi VL and Kimi VL Thinking",
        "<|im_end|>",
        file="kimi",
        settings={"thinks": True, **_KIMI_IMAGE},
        default_system="You are a helpful assistant",
        thinking=True,
    ),
    _between(
        "seed_coder",
        "Seed Coder",
        default_system=_SEED_CODER_SYSTEM,
        system=(BOS + "system\n", EOS),
        user=(BOS + "user\n", EOS),
        answer=BOS + "assistant\n",
    ),
    template("seed_oss", "Seed OSS", "<seed:eos>", tool_dialect="xml", thinking=True),
    template("ernie", "ERNIE 4.5 Thinking", "<|im_end|>", thinking=True),
    template("ernie_nothink", "ERNIE 4.5", "<|end_of_sentence|>", file="ernie_vl", settings={"thinks": False}),
    template(
        "ernie_vl",
        "ERNIE 4.5 VL Thinking",
        "<|end_of_sentence|>",
        file="ernie_vl",
        settings={"thinks": True, "sees": True},
        thinking=True,
    ),
    _between(
        "telechat2",
        "TeleChat 2",
        "<_end>",
        default_system=_TELECHAT2_SYSTEM,
        system=("<_system>", "\n"),
        user=("<_user>", ""),
        answer="<_bot>",
        stop="<_end>",
    ),
    template("youtu", "Youtu LLM", "<|end_of_text|>", thinking=True),
    _between(
        "youtu_vl",
        "Youtu VL, its text",
        "<|end_of_text|>",
        default_system="You are a helpful assistant.",
        system=("<|begin_of_text|>system\n", "<|end_of_text|>\n"),
        user=("<|begin_of_text|>user\n", "<|end_of_text|>\n"),
        answer="<|begin_of_text|>assistant\n",
        stop="<|end_of_text|>",
        gap="\n",
    ),
    _between(
        "yi_vl",
        "Yi VL, its text",
        "###",
        default_system=_YI_VL_SYSTEM,
        system=("", "\n\n"),
        user=("### Human: ", "\n"),
        answer="### Assistant:",
        lead=" ",
        stop="\n###",
        earlier_stop="\n",
    ),
    _between(
        "dots_ocr",
        "dots.ocr, its text",
        "<|endofassistant|>",
        system=("<|system|>", "<|endofsystem|>\n"),
        user=("<|user|>", "<|endofuser|>"),
        answer="<|assistant|>",
        stop="<|endofassistant|>",
    ),
    template(
        "aeva",
        "Aeva, made from GLM 4.7",
        "<|user|>",
        "<|observation|>",
        "<|endoftext|>",
        file="glm4_moe",
        settings={"line": ""},
        default_system="You are an AI assistant named Aeva created by Zongzhi Lou. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed.",
        tool_dialect="xml",
        thinking=True,
    ),
)
