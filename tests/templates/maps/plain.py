"""Oracles of the templates in ft_plugins/templates/plain.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}

_NO_SYSTEM = "fschat writes an empty system turn where there is none; the model's own template none"
_PROMPTS = ("one_turn", "many_turns", "emoji", "control_tokens")

ORACLES: dict[str, dict[str, Any]] = {
    "default": {"layout": "LLaMA-Factory's, after the tokenizer's begin-of-sequence token", "tokens": LLAMA},
    "empty": {
        "layout": "LLaMA-Factory's",
        "tokens": LLAMA,
        "stops": "none",
        "prompts": {"blanks": "the answer itself ends with blanks"},
    },
    "fewshot": {"layout": "LLaMA-Factory's", "tokens": LLAMA, "stops": "last"},
    "alpaca": {
        "layout": "LLaMA-Factory's, after the tokenizer's begin-of-sequence token, and with an empty line after every "
        "system message instead of the default one alone",
        "tokens": LLAMA,
    },
    "vicuna": {
        "oracles": {
            "fschat/vicuna_v1.1": {
                "empty_system*": "an empty system message leaves no blank behind",
                "image*": "fschat's text has no images; they stand where LLaVA's makers put them",
                "video*": "likewise",
            }
        },
        "tokens": LLAMA,
        "vision": True,
    },
    "zephyr": {
        "oracles": {"fschat/zephyr": {f"{case}*": _NO_SYSTEM for case in _PROMPTS}},
        "tokens": {"eos_token": "</s>"},
    },
    "breeze": {
        "layout": "the tokenizer of Breeze-7B-Instruct-v1_0; the end of the last answer, which it leaves out, is that "
        "of mtkresearch's MRPromptV1",
        "tokens": LLAMA,
        "stops": "last",
    },
    "openchat": {"oracles": {"fschat/openchat_3.5": {}}, "tokens": {"bos_token": "<s>"}},
    "openchat-3.6": {
        "layout": "the tokenizer of openchat-3.6-8b-20240522",
        "tokens": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    },
    "starchat": {
        "layout": "dialogues.py in HuggingFaceH4/starchat-playground (fschat has <system> for <|system|>)",
        "tokens": {"eos_token": "<|endoftext|>"},
    },
    "solar": {
        "layout": "the tokenizer of SOLAR-10.7B-Instruct-v1.0; the end of the last answer, which it leaves out, is the "
        "tokenizer's end-of-sequence token",
        "tokens": LLAMA,
        "stops": "last",
    },
    "xuanyuan": {"layout": "the README of XuanYuan, and fschat's style for its separators", "tokens": LLAMA},
    "yuan": {"layout": "LLaMA-Factory's, which Yuan's own guide uses", "tokens": {"eos_token": "<eod>"}},
    "index": {"layout": "finetune.py in bilibili/Index-1.9B", "tokens": LLAMA, "stops": "last"},
    "llava_next_mistral": {
        "oracles": {"trl-parts/llava_next.jinja": {"video*": "the published template leaves videos out"}},
        "tokens": {"eos_token": "</s>"},
        "vision": True,
    },
    "llava_next_llama3": {
        "layout": "Llama 3's, with images as in LLaVA-NeXT",
        "tokens": {"bos_token": "<|begin_of_text|>"},
        "vision": True,
    },
    "llava_next_yi": {
        "layout": "transformers' convert_llava_next_video_weights_to_hf.py, which has ChatML",
        "vision": True,
    },
    "llava_next_qwen": {
        "layout": "LLaMA-Factory's: ChatML with Qwen 1.5's default system message",
        "vision": True,
    },
    "paligemma": {"layout": "transformers' PaliGemmaProcessor: <bos>prompt, a line break, answer", "tokens": GEMMA},
    "paligemma_chat": {"layout": "LLaMA-Factory's, with Gemma's empty line after a system message", "tokens": GEMMA},
}
