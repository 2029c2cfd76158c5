"""Oracles of the templates in ft_plugins/templates/chatml_like.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

ORACLES: dict[str, dict[str, Any]] = {
    "chatml": {"layout": "ChatML as OpenAI described it"},
    "qwen": {"oracles": {"shared/Qwen-Qwen2.5-7B-Instruct.jinja": {}, "trl/qwen2_5.jinja": {}}},
    "smollm2": {"layout": "the model card of SmolLM2-1.7B-Instruct"},
}
