"""Oracles of the templates in ft_plugins/templates/vendors.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

_LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>"}
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
_DEEPSEEK = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}

_AS_WRITTEN = {"string_arguments": "arguments given as JSON text are written as they are, not as a string of JSON"}
_TEXT_AND_CALL = {"tool_call_text*": "the published template drops a text beside a call, ours refuses the row"}
_PRESERVED = {"reasoning_preserved*": "ours keeps the thoughts in the history where preserve_thinking says so"}
_VIDEO = {"video*": "the published template refuses videos; what they become is the processor's"}
_SYSTEM = "the published template refuses a system message; ours does with it as Gemma 3's does"
_LAST_THOUGHT = "the published template drops the reasoning of the last answer, which is what is to be learned"
_THOUGHT = "an answer with a thought, after the prompt of a model that is not asked to think"
_EARLIER = "the prompt's empty thought stays where the model called a tool; the published template takes it back"
_LATE_TEXT = "ours writes a text before the call beside which it stands, the published template after the result"

_LLAMA3_1 = _AS_WRITTEN | _TEXT_AND_CALL
_NEMO = "the published template forgets {} in a conversation that ends with an answer; mistral-common does not"
_RAW = "the published template writes descriptions unescaped, which is no JSON; mistral-common escapes them"
_R1 = {
    f"{case}": _LAST_THOUGHT
    for case in (
        "reasoning",
        "reasoning_system",
        "reasoning_history",
        "thinking_in_content",
        "thinking_on_reasoning",
    )
}
_UNASKED = dict.fromkeys(
    ("reasoning", "reasoning_system", "reasoning_history", "reasoning_tools*"),
    "the published template drops reasoning unless enable_thinking is set; a row that has some wants it learned",
)
_PLAIN = ("one_turn", "many_turns", "system", "empty_system", "chinese", "emoji", "control_tokens", "blanks")
_THOUGHTLESS = dict.fromkeys(
    (*_PLAIN, "reasoning_in_history_only", "thinking_on"),
    "the prompt asks for a thought, and the answer has none",
)
_THOUGHTLESS_TOOLS = dict.fromkeys(("tools*", "tool_call*", "parallel_calls"), _THOUGHTLESS["one_turn"])
_THOUGHTLESS_OFF = {"thinking_off*": "the prompt asks for a thought, whatever enable_thinking says"}

ORACLES: dict[str, dict[str, Any]] = {
    "llama2": {
        "oracles": {
            "fschat-closed/llama-2": {"blanks*": "fschat keeps blanks around contents; Meta's template does not"}
        },
        "tokens": _LLAMA2,
    },
    "llama2_zh": {"layout": "LLaMA-Factory's: llama2 with a default system message", "tokens": _LLAMA2},
    "llama3": {"oracles": {"trl/llama3.jinja": {}}, "tokens": _LLAMA3},
    "llama3_1": {
        "oracles": {
            "shared/meta-llama-Llama-3.1-8B-Instruct.jinja": _LLAMA3_1,
            "shared/meta-llama-Llama-3.3-70B-Instruct.jinja": _LLAMA3_1,
            "trl/llama3_1.jinja": _LLAMA3_1,
        },
        "tokens": _LLAMA3,
    },
    "llama3_2": {
        "oracles": {"shared/meta-llama-Llama-3.2-3B-Instruct.jinja": _LLAMA3_1, "trl/llama3_2.jinja": _LLAMA3_1},
        "tokens": _LLAMA3,
    },
    "llama4": {
        "oracles": {"processor/llama4": _AS_WRITTEN},
        "tokens": {"bos_token": "<|begin_of_text|>"},
        "vision": True,
    },
    "mistral": {
        "layout": "mistral-common's third tokenizer with its SentencePiece vocabulary (compared by hand: it needs "
        "sentencepiece, which the oracles come without); ministral with blanks",
        "tokens": _LLAMA2,
    },
    "ministral": {
        "oracles": {
            "mistral-common/tekken_240911.json": _AS_WRITTEN,
            "mistral/mistralai-Mistral-Nemo-Instruct-2407.jinja": {
                "system": _NEMO.format("the system message"),
                "chinese": _NEMO.format("the system message"),
                "blanks": _NEMO.format("the system message"),
                "empty_system.prompt": "an empty system message is none",
                "tool*": _RAW,
                "parallel_calls*": _RAW,
                "string_arguments*": _RAW,
            },
        },
        "tokens": _LLAMA2,
    },
    "mistral_small": {
        "oracles": {
            "mistral/Mistral-Small-3.2-24B-Instruct-2506.jinja": _AS_WRITTEN
            | _VIDEO
            | {
                "empty_system*": "an empty system message is none",
                "tool_call_text*": "the published template drops a text beside a call; mistral-common writes both",
            }
        },
        "tokens": _LLAMA2,
        "vision": True,
    },
    "ministral3": {"layout": "ministral3_reasoning without its default system message", "tokens": _LLAMA2},
    "ministral3_reasoning": {
        "oracles": {
            "thoughts-in-parts/mistralai-Ministral-3-14B-Reasoning-2512.jinja": _AS_WRITTEN | _VIDEO,
        },
        "tokens": _LLAMA2,
        "vision": True,
    },
    "gemma": {
        "oracles": {
            "trl/gemma3.jinja": {},
            "trl/gemma.jinja": {f"{case}*": _SYSTEM for case in ("system", "empty_system", "chinese", "blanks")},
            "shared/google-gemma-2-2b-it.jinja": {
                f"{case}*": _SYSTEM for case in ("system", "empty_system", "chinese", "blanks")
            },
        },
        "tokens": _GEMMA,
    },
    "gemma4": {
        "oracles": {
            "with-empty-thought/google-gemma-4-31B-it.jinja": {
                "tool_call": _EARLIER,
                "tool_call.prompt": _EARLIER,
                "thinking_off_tools*": _EARLIER,
                "tool_call_text*": _LATE_TEXT,
                "parallel_calls*": "without identifiers results belong to the calls in their order; null is JSON's",
                "reasoning": _LAST_THOUGHT,
                "reasoning_system": _LAST_THOUGHT,
                "reasoning_history": _LAST_THOUGHT,
                "reasoning_preserved": _LAST_THOUGHT,
                "thinking_on_reasoning": _LAST_THOUGHT,
                "reasoning_tools*": f"{_LATE_TEXT}; {_LAST_THOUGHT}",
            },
        },
        "tokens": _GEMMA,
        "vision": True,
        "prompts": {"reasoning*": _THOUGHT},
    },
    "gemma4n": {
        "oracles": {
            "trl/gemma4_v5.jinja": {
                "tool_call_text*": _LATE_TEXT,
                "parallel_calls*": "without identifiers results belong to the calls in their order",
                "reasoning_tools*": _LATE_TEXT,
            }
        },
        "tokens": _GEMMA,
        "vision": True,
    },
    "deepseek3": {"oracles": {"without-opening/deepseekv3.jinja": {}}, "tokens": _DEEPSEEK},
    "deepseekr1": {
        "oracles": {
            "trl/deepseekv3.jinja": _R1 | _PRESERVED,
            "trl/deepseek_r1_distill.jinja": _R1 | _PRESERVED,
            "shared/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": _R1 | _PRESERVED,
            "told-to-think/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": _R1
            | _PRESERVED
            | {"thinking_off*.prompt": "R1 always thinks"},
        },
        "prompts": _THOUGHTLESS | _THOUGHTLESS_OFF,
        "tokens": _DEEPSEEK,
    },
    "deepseek3_1": {
        "oracles": {
            "tools-of-model-card/deepseek-ai-DeepSeek-V3.1.jinja": _AS_WRITTEN
            | _PRESERVED
            | _R1
            | {"reasoning_tools": _LAST_THOUGHT, "reasoning_tools.prompt": _LAST_THOUGHT}
        },
        "prompts": {
            "reasoning*": _THOUGHT,
            "thinking_in_content": _THOUGHT,
            "thinking_on": _THOUGHTLESS["thinking_on"],
        },
        "tokens": _DEEPSEEK,
    },
    "deepseek3_2": {
        "oracles": {"shared/deepseek-ai-DeepSeek-V3.2.jinja": _UNASKED | _PRESERVED},
        "tokens": _DEEPSEEK,
        "prompts": dict.fromkeys(
            (*_PLAIN, "tool*", "parallel_calls", "reasoning_in_history_only", "thinking_in_content", "thinking_off*"),
            "the published template closes an empty thought in the prompt, and only closes it in the text",
        )
        | {"reasoning*": _THOUGHT},
    },
    "deepseek4": {
        "oracles": {
            "shared/deepseek-ai-DeepSeek-V4.jinja": _UNASKED | _PRESERVED,
            "shared/deepseek-ai-DeepSeek-V4-Flash-0731.jinja": _UNASKED | _PRESERVED,
        },
        "tokens": _DEEPSEEK,
        "prompts": {"reasoning*": _THOUGHT},
    },
    "chatglm": {"layout": "the model card of ChatGLM3-6B"},
    "glm4v": {"layout": "glm4, with the tags that the model card of GLM-4.1V-9B-Thinking shows"},
    "glm4": {"layout": "GLM-4-9B-0414's tokenizer, with the end of the last answer"},
    "glmz1": {
        "layout": "GLM-Z1-9B-0414's tokenizer, with the end of the last answer",
        "prompts": _THOUGHTLESS
        | _THOUGHTLESS_TOOLS
        | _THOUGHTLESS_OFF
        | {"string_arguments": _THOUGHTLESS["one_turn"]},
    },
    "glm4_moe": {
        "oracles": {"closed-by-next/glm4moe.jinja": _PRESERVED, "closed-by-next/GLM-4.6.jinja": _PRESERVED},
    },
    "glm4_7": {
        "oracles": {"closed-by-next/GLM-4.7-Flash.jinja": _PRESERVED},
        "prompts": _THOUGHTLESS | _THOUGHTLESS_TOOLS,
    },
    "cohere": {"oracles": {"trl/cohere.jinja": {}}, "tokens": {"bos_token": "<BOS_TOKEN>"}},
    "phi": {
        "oracles": {
            "trl/phi3_5.jinja": {},
            "shared/microsoft-Phi-3.5-mini-instruct.jinja": {},
            "trl/phi3.jinja": {"empty_system*": "an empty system message is none, as Phi 3.5 has it"},
        },
        "tokens": {"eos_token": "<|endoftext|>"},
        "prompts": {"*": "Phi ends a conversation with <|endoftext|> after the end of the turn"},
    },
    "granite3": {"oracles": {"granite/ibm-granite-granite-3.3-2B-Instruct.jinja": _AS_WRITTEN}},
    "granite4": {"oracles": {"shared/ibm-granite-granite-4.0.jinja": {}}},
    "granite4_1": {"oracles": {"shared/ibm-granite-granite-4.1.jinja": {}}},
    "minimax1": {
        "oracles": {
            "shared/MiniMax-M1.jinja": _AS_WRITTEN
            | {"tool_call_text*": "the published template drops a text beside a call, ours writes it before the call"}
        }
    },
    "minimax2": {
        "oracles": {"shared/MiniMax-M2.jinja": _PRESERVED},
        "prompts": _THOUGHTLESS | _THOUGHTLESS_TOOLS | _THOUGHTLESS_OFF,
    },
    "gpt_oss": {
        "oracles": {
            "thinking/openai-gpt-oss-120b.jinja": _AS_WRITTEN
            | _PRESERVED
            | {"parallel_calls*": "the published template writes the first of several calls only, ours refuses the row"}
        },
        "stops": "last",
        "prompts": {"tool_call_text": "what was thought before a call is dropped once there is an answer"},
    },
    "deepseek": {"layout": "the tokenizer of DeepSeek-Coder-V2", "tokens": _DEEPSEEK},
    "deepseekcoder": {
        "layout": "the tokenizer of deepseek-coder-1.3b-instruct",
        "tokens": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<|EOT|>"},
    },
    "phi_small": {
        "layout": "LLaMA-Factory's, without the <|endoftext|> that the tokenizer puts after a conversation",
        "tokens": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    },
    "phi4": {"layout": "LLaMA-Factory's, and the model card of phi-4"},
    "phi4_mini": {"layout": "the model card of Phi-4-mini-instruct"},
    "exaone": {"layout": "the tokenizer of EXAONE-3.5-7.8B-Instruct"},
    "falcon": {
        "oracles": {"fschat-ended/falcon-chat": {}},
        "tokens": {"eos_token": "<|endoftext|>"},
        "stops": "last",
    },
    "falcon_h1": {
        "layout": "LLaMA-Factory's: ChatML after <|begin_of_text|>",
        "tokens": {"bos_token": "<|begin_of_text|>"},
    },
    "dbrx": {"layout": "the tokenizer of dbrx-instruct, and a line break after the last answer"},
    "granite3_vision": {"layout": "LLaMA-Factory's"},
    "olmo": {"layout": "the model card of OLMo-7B-Instruct", "tokens": {"eos_token": "<|endoftext|>"}},
}
