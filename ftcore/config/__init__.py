"""From a file and ``key=value`` words to a `ftcore.api.plan.Plan`. Imports no torch."""

from __future__ import annotations

from typing import Any

from ftcore import deprecated_names


def __getattr__(name: str) -> Any:
    return deprecated_names.forwarded(__name__, name)
