"""Oracles of the templates in ft_plugins/templates/chatml_like.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

_STRING = {"string_arguments": "arguments given as JSON text are that JSON; the makers' template quotes them again"}
_PRESERVED = {"reasoning_preserved*": "preserve_thinking is obeyed; the makers' template does not know it"}

ORACLES: dict[str, dict[str, Any]] = {
    "chatml": {"oracles": {"llamacpp/teknium-OpenHermes-2.5-Mistral-7B.jinja": {}}},
    "qwen": {"oracles": {"shared/Qwen-Qwen2.5-7B-Instruct.jinja": _STRING, "trl/qwen2_5.jinja": _STRING}},
    "qwen3": {"oracles": {"shared/Qwen-Qwen3-0.6B.jinja": _PRESERVED, "trl/qwen3.jinja": _PRESERVED}},
    "qwen3_nothink": {"oracles": {"trl/qwen3_instruct_2507.jinja": {}}},
    "qwen2_vl": {"oracles": {"trl/qwen2_5_vl.jinja": {}, "xinference/qwen2-vl-instruct.jinja": {}}, "vision": True},
    "qwen3_vl": {"oracles": {"xinference/Qwen3-VL-Thinking.jinja": _PRESERVED}, "vision": True},
    "qwen3_vl_nothink": {"oracles": {"trl/qwen3_vl.jinja": {}}, "vision": True},
    "qwen3_omni": {
        "oracles": {
            "xinference/Qwen3-Omni-Thinking.jinja": _PRESERVED
            | {
                "image": "a question with images is a question: the answer to it is written as any other",
                "video": "a question with a video is a question: the answer to it is written as any other",
            }
        },
        "vision": True,
    },
    "qwen3_5": {
        "oracles": {"trl/qwen3_5_think.jinja": _PRESERVED, "shared/Qwen3.5-4B.jinja": _PRESERVED},
        "vision": True,
    },
    "qwen3_5_nothink": {
        "oracles": {"trl/qwen3_5_nothink.jinja": _PRESERVED},
        "vision": True,
        "prompts": {
            "reasoning*": "the prompt closes the thought that the answer has; set enable_thinking",
            "thinking_in_content": "the prompt closes the thought that the answer has; set enable_thinking",
        },
    },
    "qwen3_6": {"oracles": {"trl/qwen3_6.jinja": {}}, "vision": True},
    "qwen2_audio": {"oracles": {"transformers/qwen2_audio": {}}},
    "qwen2_omni": {"oracles": {"xinference/qwen2.5-omni.jinja": {}}, "vision": True},
    "smollm2": {"layout": "the model card of SmolLM2-1.7B-Instruct"},
}
