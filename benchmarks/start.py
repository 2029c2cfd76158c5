"""What all programs begin with: the model's folder and the adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from programs import HERE, Setting, call

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face' + '<|im_end|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The model's own, without the line break after a turn, which LLaMA-Factory trains and ft does not."""


def make_model(source: Path, folder: Path) -> Path:
    """The model's own weights and tokens, with three settings by which the programs come to do the same.

    The chat template above. A padding token that is not the end of a turn: ft and TRL read a reward at the last token
    that is no padding token, LLaMA-Factory at the last one. No dropout before LLaMA-Factory's reward head, which has
    0.1 where the model's configuration does not say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    padding = "<|endoftext|>"
    number = _number(source / "tokenizer.json", padding)
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"pad_token_id": number, "summary_dropout_prob": 0.0},
        "generation_config.json": {"pad_token_id": number},
        "tokenizer_config.json": {"chat_template": TEMPLATE, "pad_token": padding},
    }
    for name, change in changes.items():
        own = json.loads((source / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(own | change, indent=1), encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((source / name).resolve())
    return folder


def make_adapters(setting: Setting) -> Path:
    """``lora`` and ``score``, with which every program begins: fresh ones would be drawn differently."""
    if not (setting.adapters / "score" / "adapter_config.json").is_file():
        setting.adapters.mkdir(parents=True, exist_ok=True)
        # the older peft makes them: each can read what it writes
        script = [setting.python("llamafactory"), HERE / "peers" / "make_adapters.py", setting.model, setting.adapters]
        call(setting, "llamafactory", script, setting.adapters)
    return setting.adapters


def _number(file: Path, token: str) -> int:
    vocabulary = json.loads(file.read_text(encoding="utf-8"))
    found = [entry["id"] for entry in vocabulary["added_tokens"] if entry["content"] == token]
    return int(found[0] if found else vocabulary["model"]["vocab"][token])
