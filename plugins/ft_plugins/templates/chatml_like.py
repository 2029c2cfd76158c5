"""ChatML templates, with ``<|im_start|>`` and ``<|im_end|>`` around turns, and similar ones."""

from __future__ import annotations

from ft_plugins.templates.table import template
from ftcore.api.components import ChatTemplate

_END = "<|im_end|>"
_QWEN = (_END, "<|endoftext|>")
_QWEN_VISION = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}
_OMNI_VISION = {"image": "<|vision_bos|><|IMAGE|><|vision_eos|>", "video": "<|vision_bos|><|VIDEO|><|vision_eos|>"}
_INTERN_VISION = {"image": "<IMG_CONTEXT>\n", "video": "<video>\n"}
_HELPFUL = "You are a helpful assistant."
_CODER = {
    "tools_system": "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks.",
    "introduction": "You have access to the following tools:",
    "instructions": "If you choose to call a tool ONLY reply in the following format with NO suffix:\n\n<tool_call>\n"
    "<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nvalue_2\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: the tool calling block MUST begin with an opening <tool_call> "
    "tag and end with a closing </tool_call> tag.\n- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT "
    "after\n- If there is no function call available, answer the question like normal with your current knowledge and "
    "do not tell the user about function calls\n</IMPORTANT>",
}
_MIMO_V2 = {
    "introduction": "You may call one or more functions to assist with the user query.\n\n"
    "You have access to the following functions:",
    "instructions": "For each function call, output the function name and arguments in the following format:\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>value_1</parameter>\n"
    "<parameter=example_parameter_2>This is the value for the second parameter\nthat can span\nmultiple lines"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n- DO NOT use function calls inside <think></think> tags.\n"
    "- The value enclosed between parameter tags is preserved exactly as-is, including newlines and spaces.\n"
    "</IMPORTANT>",
}

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
        "Qwen 3 VL Thinking, Qwen 3 Thinking and Qwen 3 Next Thinking",
        *_QWEN,
        file="hermes",
        settings={"thinks": True, "opens": True, **_QWEN_VISION},
        tool_dialect="json",
        thinking=True,
        aliases=("qwen3_thinking",),
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
    template(
        "qwen3_coder",
        "Qwen 3 Coder",
        *_QWEN,
        settings=_CODER | {"spaced": True, "gap": "\n", "results_role": "user"},
        tool_dialect="xml",
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
        "MiMo V2 and V2.5",
        *_QWEN,
        file="qwen3_coder",
        settings=_MIMO_V2 | {"thinks": True, "sees": True, "gap": "", "results_role": "tool"},
        default_system="You are MiMo, a helpful AI assistant engineered by Xiaomi.",
        tool_dialect="xml",
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
