"""Prompts, sessions and outputs of the commands chat, generate and serve."""

from __future__ import annotations

from typing import Any

from ftcore import deprecated_names


def __getattr__(name: str) -> Any:
    return deprecated_names.forwarded(__name__, name)
