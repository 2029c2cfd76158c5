"""Templates that put turns between ``<|im_start|>`` and ``<|im_end|>``, and their neighbours."""

from __future__ import annotations

from ft_plugins.templates.table import template
from ftcore.components import ChatTemplate

_END = "<|im_end|>"
_QWEN = (_END, "<|endoftext|>")
_QWEN_VISION = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}
_OMNI_VISION = {"image": "<|vision_bos|><|IMAGE|><|vision_eos|>", "video": "<|vision_bos|><|VIDEO|><|vision_eos|>"}
_INTERN_VISION = {"image": "<IMG_CONTEXT>\n", "video": "<video>\n"}
_HELPFUL = "You are a helpful assistant."

QWEN: tuple[ChatTemplate, ...] = (
    template(
        "qwen",
        "Qwen 2 and 2.5, with tools",
        *_QWEN,
        file="hermes",
        default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        tool_dialect="json",
    ),
    template(
        "qwen3",
        "Qwen 3 that thinks when asked to",
        *_QWEN,
        file="hermes",
        settings={"thinks": True},
        tool_dialect="json",
        thinking=True,
    ),
    template(
        "qwen3_nothink",
        "Qwen 3 Instruct, which does not think",
        *_QWEN,
        file="hermes",
        tool_dialect="json",
    ),
    template(
        "qwen2_vl",
        "Qwen 2 VL and 2.5 VL",
        *_QWEN,
        file="chatml",
        settings=_QWEN_VISION,
        default_system=_HELPFUL,
    ),
    template(
        "qwen3_vl",
        "Qwen 3 VL Thinking",
        *_QWEN,
        file="hermes",
        settings={"thinks": True, "opens": True, **_QWEN_VISION},
        tool_dialect="json",
        thinking=True,
    ),
    template(
        "qwen3_vl_nothink",
        "Qwen 3 VL Instruct, Qwen 3 Omni Instruct and MOSS VL",
        *_QWEN,
        file="hermes",
        settings=_QWEN_VISION,
        tool_dialect="json",
        aliases=("qwen3_omni_nothink", "moss_vl"),
    ),
    template(
        "qwen3_omni",
        "Qwen 3 Omni Thinking, its text and its images; Keye VL",
        *_QWEN,
        file="hermes",
        settings={"thinks": True, **_QWEN_VISION},
        tool_dialect="json",
        thinking=True,
        aliases=("keye_vl",),
    ),
    template(
        "qwen3_5",
        "Qwen 3.5, which thinks unless told otherwise",
        *_QWEN,
        file="qwen3_5",
        settings={"thinks_unasked": True},
        tool_dialect="xml",
        thinking=True,
    ),
    template(
        "qwen3_5_nothink",
        "Qwen 3.5 that thinks only when asked to",
        *_QWEN,
        file="qwen3_5",
        settings={"thinks_unasked": False},
        tool_dialect="xml",
        thinking=True,
    ),
    template(
        "qwen3_6",
        "Qwen 3.6: as 3.5, with arguments in JSON",
        *_QWEN,
        file="qwen3_5",
        settings={"thinks_unasked": True, "as_json": True},
        tool_dialect="xml",
        thinking=True,
    ),
    template("qwen2_audio", "Qwen 2 Audio, its text", *_QWEN, file="chatml", default_system=_HELPFUL),
    template(
        "qwen2_omni",
        "Qwen 2.5 Omni, its text and its images",
        *_QWEN,
        file="chatml",
        settings=_OMNI_VISION,
        default_system=_HELPFUL,
    ),
)

TEMPLATES: tuple[ChatTemplate, ...] = (
    template("chatml", "ChatML, without a default system message", _END, aliases=("smollm", "yi", "cpm4")),
    template(
        "chatml_de",
        "ChatML in German",
        _END,
        file="chatml",
        default_system="Du bist ein freundlicher und hilfsbereiter KI-Assistent.",
    ),
    *QWEN,
    template(
        "smollm2",
        "SmolLM2",
        _END,
        file="chatml",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    template(
        "opencoder",
        "OpenCoder",
        _END,
        file="chatml",
        default_system="You are OpenCoder, created by OpenCoder Team.",
    ),
    template(
        "sailor",
        "Sailor, whose roles are question and answer",
        _END,
        file="chatml",
        settings={"names": {"user": "question", "assistant": "answer"}},
        default_system="You are an AI assistant named Sailor created by Sea AI Lab. "
        "Your answer should be friendly, unbiased, faithful, informative and detailed.",
    ),
    template("intern2", "InternLM 2, 2.5 and 3", _END, "</s>", file="chatml", settings={"begins": True}),
    template(
        "intern_s1",
        "Intern S1, without thinking",
        _END,
        file="chatml",
        settings={"begins": True, **_INTERN_VISION},
    ),
    template(
        "intern_vl",
        "InternVL 2.5 and 3",
        _END,
        file="chatml",
        settings=_INTERN_VISION,
        default_system="你是书生·万象，英文名是InternVL，"
        "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    ),
    template(
        "minicpm_v",
        "MiniCPM V 2.6 to 4.6",
        _END,
        "<|endoftext|>",
        file="chatml",
        settings={"image": "(<image>./</image>)\n", "video": "(<video>./</video>)\n"},
        default_system=_HELPFUL,
        aliases=("minicpm_v_4_6",),
    ),
    template(
        "minicpm_o",
        "MiniCPM o 2.6, its text and its images",
        _END,
        "<|endoftext|>",
        file="chatml",
        settings={"image": "(<image>./</image>)\n", "video": "(<video>./</video>)\n"},
        default_system="You are a helpful assistant. You can accept audio and text input and output voice and text.",
    ),
    template(
        "mimo_vl",
        "MiMo 7B and MiMo VL",
        *_QWEN,
        file="hermes",
        settings=_QWEN_VISION,
        default_system="You are MiMo, an AI assistant developed by Xiaomi.",
        tool_dialect="json",
        aliases=("mimo",),
    ),
    template(
        "mimo_v2",
        "MiMo V2 Flash",
        *_QWEN,
        file="hermes",
        settings={"thinks": True, "gap": "", "opening": "<think>", "closing": "</think>"},
        default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
        tool_dialect="json",
        thinking=True,
    ),
    template("lfm2", "LFM2", _END, settings={"marked": True}, tool_dialect="python"),
    template(
        "lfm2_vl",
        "LFM2 VL, and LFM2.5 with and without images",
        _END,
        file="lfm2",
        settings={"thinks": True},
        tool_dialect="python",
        thinking=True,
        aliases=("lfm2_5",),
    ),
)
