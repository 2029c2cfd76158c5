"""Makes a `ftcore.api.plan.Plan` of a file and ``key=value`` words. Does not import torch."""

from __future__ import annotations

from typing import Any

from ftcore import deprecated_names


def __getattr__(name: str) -> Any:
    return deprecated_names.forwarded(__name__, name)
