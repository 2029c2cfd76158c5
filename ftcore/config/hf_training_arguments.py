"""The fields of ``transformers.Seq2SeqTrainingArguments``, without importing transformers, which takes seconds.

``docs/generate.py`` writes ``hf_training_arguments.json``; a test compares it where transformers is of constraints.txt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CHECKS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "list": (list, tuple),
    "dict": dict,
}

_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_CHOICES = {
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
}
"""Values of fields that transformers declares as ``str``; a test compares them with transformers."""


@dataclass(frozen=True, slots=True)
class TrainingField:
    """One field: its name, accepted types, default and help."""

    name: str
    types: tuple[str, ...]
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> str:
        """An error message for a wrong value; empty for a valid one."""
        if self.choices and value not in self.choices:
            return f"{value!r} is not one of {', '.join(self.choices)}"
        if isinstance(value, bool) and "bool" not in self.types:
            return f"{value!r} is not {' or '.join(self.types)}"
        if any(isinstance(value, _CHECKS[name]) for name in self.types if name in _CHECKS):
            return ""
        return f"{value!r} is not {' or '.join(self.types)}"


@cache
def training_fields() -> dict[str, TrainingField]:
    """Name -> field."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {
        (name := row["name"]): TrainingField(
            name,
            tuple(row["types"]),
            row["default"],
            row["help"],
            _CHOICES.get(name) or tuple(row["choices"]),
        )
        for row in rows
    }
