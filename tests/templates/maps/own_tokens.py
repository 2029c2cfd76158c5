"""Oracles of the templates in ft_plugins/templates/own_tokens.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

_PRESERVED = {"reasoning_preserved*": "preserve_thinking is obeyed; the makers' template does not know it"}
_THOUGHTLESS = (
    *("one_turn", "many_turns", "system", "empty_system", "chinese", "emoji", "control_tokens", "blanks"),
    *("tools*", "tool_call*", "parallel_calls", "reasoning_in_history_only", "thinking_on"),
)

ORACLES: dict[str, dict[str, Any]] = {
    "hunyuan": {"layout": "ms-swift's: LLaMA-Factory's opens a text once only, the makers' template for each question"},
    "hunyuan_small": {
        "oracles": {
            "xinference/Hy-MT2-7B.jinja": dict.fromkeys(
                ("one_turn", "many_turns", "system", "empty_system", "chinese", "emoji", "control_tokens", "blanks"),
                "the makers close a finished conversation with a token that one which goes on does not have",
            )
        }
    },
    "hy3": {
        "oracles": {
            "hy3/tencent-Hy3.jinja": dict.fromkeys(
                ("reasoning_history", "reasoning_in_history_only", "thinking_on_reasoning"),
                "thinking of earlier questions is left out, as the makers' prompts leave it out; "
                "preserve_thinking keeps it",
            )
        },
        "prompts": dict.fromkeys(
            ("reasoning", "reasoning_system", "reasoning_history", "reasoning_preserved", "reasoning_tools"),
            "the prompt closes the thought that the answer has; set enable_thinking",
        ),
    },
    "bailing": {"layout": "LLaMA-Factory's and ms-swift's", "stops": "last"},
    "bailing_v2": {"oracles": {"github/Ling-1T.jinja": _PRESERVED}},
    "bailing_v3": {
        "oracles": {"shared/inclusionai-ling-3.0-flash.jinja": {}, "xinference/Ling-3.0-tiny.jinja": {}},
    },
    "moonlight": {"oracles": {"xinference/moonlight-16b-a3b-instruct.jinja": {}}},
    "kimi_vl": {"layout": "LLaMA-Factory's and ms-swift's", "vision": True},
    "seed_coder": {
        "layout": "LLaMA-Factory's",
        "tokens": {"bos_token": "<[begin▁of▁sentence]>", "eos_token": "<[end▁of▁sentence]>"},
    },
    "seed_oss": {
        "oracles": {
            "seed/ByteDance-Seed-OSS.jinja": dict.fromkeys(
                ("thinking_off", "thinking_off_system", "thinking_off_tools"),
                "the last answer follows the closed thought with which the makers' prompt ends",
            )
        }
    },
    "ernie": {"layout": "ms-swift's"},
    "ernie_nothink": {"oracles": {"xinference/Ernie4.5.jinja": {}}},
    "ernie_vl": {"layout": "ms-swift's", "vision": True},
    "telechat2": {"layout": "ms-swift's"},
    "youtu": {"layout": "LLaMA-Factory's and ms-swift's", "tokens": {"bos_token": "<|begin_of_text|>"}},
    "youtu_vl": {"layout": "LLaMA-Factory's"},
    "yi_vl": {"layout": "LLaMA-Factory's", "stops": "last"},
    "dots_ocr": {"layout": "LLaMA-Factory's and ms-swift's"},
    "aeva": {
        "layout": "GLM 4.7 with the system message that LLaMA-Factory knows",
        "prompts": dict.fromkeys(_THOUGHTLESS, "the prompt asks for a thought, and the answer has none"),
    },
}
