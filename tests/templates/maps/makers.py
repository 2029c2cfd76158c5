"""Oracles of the templates in ft_plugins/templates/makers.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

_PLAIN = ("one_turn", "many_turns", "system", "empty_system", "chinese", "emoji", "control_tokens", "blanks")
_NO_SYSTEM = ("one_turn", "many_turns", "emoji", "control_tokens", "tools", "tool_call*", "parallel_calls*")
_PRESERVED = {"reasoning_preserved*": "ours keeps the thoughts in the history where preserve_thinking says so"}
_OPENED = "the prompt begins a thought; an answer without one closes it, which the published template forgets"
_ALWAYS = "the model always thinks, whatever enable_thinking says"
_LAST_THOUGHT = "the published template drops the reasoning of the last answer, which is what is to be learned"
_TOOLS_ONLY = "the published template is for tools alone; without any, the makers' default one is ChatML"
_TEXT_AND_CALL = "the published template drops a text beside a call, ours writes it before the call"
_THOUGHTLESS = dict.fromkeys(
    (*_PLAIN, "tools*", "tool_call*", "parallel_calls", "reasoning_in_history_only", "thinking_on"),
    "the prompt asks for a thought, and the answer has none",
)
_REFUSED = "the published template drops a text beside a call, ours refuses the row"
_ONE_CALL = "the published template writes the first of several calls only, ours refuses the row"
_GIVEN = "the last answer follows the empty thought with which the makers' prompt ends"
_AS_WRITTEN = {"string_arguments": "arguments given as JSON text are written as they are, not as a string of JSON"}
_UNASKED = "an answer with a thought, after the prompt of a model that is not asked to think"
_THOUGHT = {"reasoning*": _UNASKED, "thinking_in_content": _UNASKED, "thinking_on": _THOUGHTLESS["thinking_on"]}

ORACLES: dict[str, dict[str, Any]] = {
    "smollm3": {"oracles": {"smollm3/HuggingFaceTB-SmolLM3-3B.jinja": {}}},
    "qwq": {
        "oracles": {
            "qwq/Qwen-QwQ-32B.jinja": dict.fromkeys((*_PLAIN, "tool*", "string_arguments", "thinking_on"), _OPENED)
            | _PRESERVED
            | {
                "parallel_calls": _OPENED,
                "reasoning_in_history_only": _OPENED,
                "reasoning_tools*": "a thought that is left out before a call leaves no empty line behind",
                "thinking_off*": _ALWAYS,
            }
        }
    },
    "hermes3": {
        "oracles": {
            f"shared/NousResearch-{name}-tool_use.jinja": {f"{case}*": _TOOLS_ONLY for case in _PLAIN}
            | {
                "tool_call.prompt": "the published prompt lacks a line break that its own text has after results",
                "tool_call_text*": _TEXT_AND_CALL,
            }
            for name in ("Hermes-2-Pro-Llama-3-8B", "Hermes-3-Llama-3.1-8B")
        },
        "tokens": {"bos_token": "<|begin_of_text|>"},
    },
    "bielik": {
        "oracles": {"shared/Bielik-11B-v3.0-Instruct.jinja": {}},
        "tokens": {"bos_token": "<s>"},
        "prompts": {"thinking_on": _THOUGHTLESS["thinking_on"]},
    },
    "minicpm5": {
        "oracles": {"shared/openbmb-MiniCPM5-1B.jinja": _PRESERVED | {"thinking_off*": _GIVEN}},
        "tokens": {"bos_token": "<s>"},
        "prompts": {"thinking_on": _THOUGHTLESS["thinking_on"]},
    },
    "nemotron3": {
        "oracles": {
            "nemotron/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja": {},
            "nemotron/nemotron_3_nano.jinja": {},
            "nemotron/nemotron_3_super.jinja": {},
        },
        "prompts": _THOUGHTLESS,
    },
    "nemotron3_ultra": {
        "oracles": {"nemotron/nemotron_3_ultra.jinja": {}, "nemotron/nemotron_3_5_lightning.jinja": {}},
        "prompts": _THOUGHTLESS,
    },
    "step3_5": {
        "oracles": {"shared/StepFun3.5-Flash.jinja": _PRESERVED},
        "tokens": {"bos_token": "<s>"},
    },
    "kimi_k2": {
        "oracles": {
            "kimi/Kimi-K2-Instruct.jinja": {},
            "shared/moonshotai-Kimi-K2.jinja": {
                f"{case}*": "the first default system message did not name Kimi, results had no number"
                for case in (*_NO_SYSTEM, "string_arguments")
            },
        }
    },
    "kimi_k2_thinking": {
        "oracles": {
            "kimi/Kimi-K2-Thinking.jinja": _PRESERVED | {"reasoning": _LAST_THOUGHT, "reasoning_system": _LAST_THOUGHT}
        }
    },
    "spark": {
        "oracles": {"shared/Spark2.5.jinja": {}},
        "prompts": _THOUGHTLESS | {"thinking_in_content": _THOUGHTLESS["one_turn"]},
    },
    "laguna": {"oracles": {"shared/poolside-Laguna-XS.2.jinja": {}}, "prompts": _THOUGHT},
    "laguna_2_1": {"oracles": {"shared/poolside-Laguna-XS-2.1.jinja": {}}, "prompts": _THOUGHT},
    "laguna_s": {"oracles": {"shared/poolside-Laguna-S-2.1.jinja": {}}},
    "devstral": {
        "oracles": {"shared/unsloth-mistral-Devstral-Small-2507.jinja": {}},
        "tokens": {"bos_token": "<s>", "eos_token": "</s>"},
    },
    "kimi_k3": {"oracles": {"kimi-k3/Kimi-K3.jinja": {}}},
    "minimax3": {
        "oracles": {"minimax3/MiniMax-M3.jinja": {}},
        "vision": True,
        "prompts": {"thinking_on": _THOUGHTLESS["thinking_on"]},
    },
    "muse_glimmer": {
        "oracles": {
            "named/muse-glimmer.jinja": {"tool_call_text*": _REFUSED, "reasoning_tools*": _REFUSED},
        },
        "tokens": {"bos_token": "<|begin_of_text|>"},
        "vision": True,
    },
    "nemotron_v2": {
        "oracles": {
            "nemotron-v2/NVIDIA-Nemotron-Nano-v2.jinja": dict.fromkeys(_THOUGHTLESS, _OPENED)
            | _PRESERVED
            | {
                "string_arguments": "the last call ends as earlier ones do",
                "thinking_in_content": "a thought that stands between tags is not opened twice",
                "thinking_off*": "the published template knows /no_think alone, ours enable_thinking as well",
            }
        },
        "prompts": _THOUGHTLESS | {"string_arguments": _THOUGHTLESS["tool_call*"]},
    },
    "functionary3_1": {
        "oracles": {"functionary/meetkai-functionary-medium-v3.1.jinja": _AS_WRITTEN},
        "tokens": {"bos_token": "<|begin_of_text|>"},
    },
    "functionary3_2": {
        "oracles": {"written/meetkai-functionary-medium-v3.2.jinja": {}},
        "tokens": {"bos_token": "<|begin_of_text|>"},
    },
    "firefunction2": {
        "oracles": {"firefunction/fireworks-ai-llama-3-firefunction-v2.jinja": _AS_WRITTEN},
        "tokens": {"bos_token": "<|begin_of_text|>"},
    },
    "reka_edge": {
        "oracles": {
            "shared/Reka-Edge.jinja": _PRESERVED
            | dict.fromkeys(
                ("reasoning", "reasoning_system", "reasoning_history", "reasoning_tools*", "thinking_in_content"),
                "without enable_thinking the published template drops thoughts; a row that has some wants them learned",
            )
        },
        "vision": True,
    },
    "apertus": {
        "oracles": {
            "apertus/Apertus-8B-Instruct.jinja": _AS_WRITTEN
            | {
                f"{case}.prompt": "the makers' prompt begins another turn after a result, their text does not"
                for case in ("tool_call", "tool_call_text", "reasoning_tools", "thinking_off_tools")
            }
        },
        "tokens": {"bos_token": "<s>"},
    },
    "apriel": {
        "oracles": {"apriel/unsloth-Apriel-1.5.jinja": _AS_WRITTEN},
        "tokens": {"bos_token": "<s>", "eos_token": "<|end|>"},
        "vision": True,
    },
    "apriel1_6": {
        "oracles": {
            "apriel1.6/Apriel-1.6-15b-Thinker-fixed.jinja": _AS_WRITTEN
            | _PRESERVED
            | dict.fromkeys(
                ("reasoning", "reasoning_system", "reasoning_history", "reasoning_tools", "thinking_on_reasoning"),
                "the line with which the prompt ends stands before the thought as well",
            )
        },
        "tokens": {"bos_token": "<s>"},
        "vision": True,
        "prompts": _THOUGHTLESS
        | dict.fromkeys(
            ("string_arguments", "thinking_in_content", "thinking_off*", "image"), _THOUGHTLESS["one_turn"]
        ),
    },
    "gigachat3": {
        "oracles": {"shared/GigaChat3-10B-A1.8B.jinja": {"parallel_calls*": _ONE_CALL}},
        "tokens": {"bos_token": "<s>"},
    },
    "gigachat3_1": {
        "oracles": {"shared/GigaChat3.1-10B-A1.8B.jinja": {"parallel_calls*": _ONE_CALL}},
        "tokens": {"bos_token": "<s>"},
    },
    "cohere2": {
        "oracles": {
            "cohere2/CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja": _AS_WRITTEN
            | _PRESERVED
            | {
                "empty_system*": "an empty system message is none",
                "tool_call_text*": _REFUSED,
                "reasoning_tools*": _REFUSED,
                "reasoning": _LAST_THOUGHT,
                "reasoning_system": _LAST_THOUGHT,
                "reasoning_history": _LAST_THOUGHT,
                "thinking_on_reasoning": _LAST_THOUGHT,
                "thinking_off*": _GIVEN,
            }
        },
        "tokens": {"bos_token": "<BOS_TOKEN>"},
    },
    "cohere2_moe": {
        "oracles": {
            "cohere2/Cohere2MoE.jinja": _AS_WRITTEN
            | {"tool_call_text*": _REFUSED, "reasoning_tools*": _REFUSED, "thinking_off*": _GIVEN}
        },
        "tokens": {"bos_token": "<BOS_TOKEN>"},
        "prompts": _THOUGHTLESS | dict.fromkeys(("string_arguments", "thinking_in_content"), _THOUGHTLESS["one_turn"]),
    },
    "rwkv": {
        "oracles": {
            "shared/llama-cpp-rwkv-world.jinja": {
                "blanks*": "blanks around the system message are cut off, as those around all other contents are"
            }
        },
        "tokens": {"bos_token": "<|endoftext|>"},
        "prompts": {"*": "an empty line ends an answer"},
    },
}
