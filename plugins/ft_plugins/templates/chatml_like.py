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
        "Qwen 3 VL Instruct and Qwen 3 Omni Instruct",
        *_QWEN,
        file="hermes",
        settings=_QWEN_VISION,
        tool_dialect="json",
        aliases=("qwen3_omni_nothink",),
    ),
    template(
        "qwen3_omni",
        "Qwen 3 Omni Thinking, its text and its images",
        *_QWEN,
        file="hermes",
        settings={"thinks": True, **_QWEN_VISION},
        tool_dialect="json",
        thinking=True,
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
    template("chatml", "ChatML, without a default system message", _END),
    *QWEN,
    template(
        "smollm2",
        "SmolLM2",
        _END,
        file="chatml",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
)
