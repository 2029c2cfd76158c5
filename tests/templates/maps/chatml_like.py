"""Oracles of the templates in ft_plugins/templates/chatml_like.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

_STRING = {"string_arguments": "arguments given as JSON text are that JSON; the makers' template quotes them again"}
_PRESERVED = {"reasoning_preserved*": "preserve_thinking is obeyed; the makers' template does not know it"}
_BLIND = {
    "image*": "the makers' template of the model without eyes drops all content with an image",
    "video*": "the makers' template of the model without eyes drops all content with a video",
}
_CALLS = {
    "*call*": "calls are written; the makers' earlier template drops them without a word",
    "string_arguments*": "arguments given as text are refused, as the makers' later template does",
}

ORACLES: dict[str, dict[str, Any]] = {
    "chatml": {
        "oracles": {
            "llamacpp/teknium-OpenHermes-2.5-Mistral-7B.jinja": {},
            "xinference/Yi-chat.jinja": {},
            "xinference/minicpm4.jinja": {},
        }
    },
    "chatml_de": {"layout": "ChatML with the system message that LLaMA-Factory knows"},
    "qwen": {"oracles": {"shared/Qwen-Qwen2.5-7B-Instruct.jinja": _STRING, "trl/qwen2_5.jinja": _STRING}},
    "qwen3": {"oracles": {"shared/Qwen-Qwen3-0.6B.jinja": _PRESERVED, "trl/qwen3.jinja": _PRESERVED}},
    "qwen3_nothink": {"oracles": {"trl/qwen3_instruct_2507.jinja": {}}},
    "qwen2_vl": {"oracles": {"trl/qwen2_5_vl.jinja": {}, "xinference/qwen2-vl-instruct.jinja": {}}, "vision": True},
    "qwen3_vl": {
        "oracles": {
            "xinference/Qwen3-VL-Thinking.jinja": _PRESERVED,
            "xinference/Qwen3-Thinking.jinja": _PRESERVED | _BLIND,
        },
        "vision": True,
    },
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
    "opencoder": {"oracles": {"github/OpenCoder.jinja": {}}},
    "sailor": {"layout": "LLaMA-Factory's"},
    "intern2": {
        "oracles": {"xinference/internlm2-chat.jinja": {}, "xinference/internlm3-instruct.jinja": {}},
        "tokens": {"bos_token": "<s>"},
    },
    "intern_s1": {"layout": "LLaMA-Factory's", "tokens": {"bos_token": "<s>"}, "vision": True},
    "intern_vl": {
        "oracles": {
            "xinference/InternVL2.5.jinja": {
                f"{case}{part}": "the tokenizer's template is left over from Qwen; the model's own code has this system"
                for case in ("one_turn", "many_turns", "emoji", "control_tokens")
                for part in ("", ".prompt")
            }
        },
    },
    "minicpm_v": {"oracles": {"xinference/MiniCPM-V-2.6.jinja": {}, "xinference/MiniCPM-V-4.5.jinja": {}}},
    "minicpm_o": {"layout": "LLaMA-Factory's", "vision": True},
    "mimo_vl": {"oracles": {"shared/MiMo-VL.jinja": _STRING}},
    "mimo_v2": {"oracles": {"github/MiMo-V2.5.jinja": {}}, "vision": True},
    "qwen3_coder": {"oracles": {"shared/Qwen3-Coder.jinja": {}}},
    "lfm2": {
        "oracles": {
            "trl/lfm2_v2.jinja": {},
            "trl/lfm2.jinja": _CALLS,
            "shared/LFM2-8B-A1B.jinja": _CALLS,
        },
        "tokens": {"bos_token": "<|startoftext|>"},
    },
    "lfm2_vl": {
        "oracles": {
            "trl/lfm2_2_5_vl.jinja": {},
            "trl/lfm2_2_5_v2.jinja": {},
            "shared/LFM2.5-Instruct.jinja": _CALLS
            | _BLIND
            | dict.fromkeys(
                ("reasoning*", "thinking_on_reasoning", "thinking_in_content.prompt"),
                "the makers' template of the model that does not think knows thoughts in the content alone",
            )
            | {"thinking_off_tools*": _CALLS["*call*"]},
            "thinking/LFM2.5-8B-A1B.jinja": {"string_arguments*": _CALLS["string_arguments*"]},
        },
        "tokens": {"bos_token": "<|startoftext|>"},
        "vision": True,
    },
}
