"""Oracles of the templates in ft_plugins/templates/vendors.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

ORACLES: dict[str, dict[str, Any]] = {
    "chatglm": {"layout": "the model card of ChatGLM3-6B"},
    "llama3": {"layout": "the model card of Meta-Llama-3-8B-Instruct", "tokens": {"bos_token": "<|begin_of_text|>"}},
}
