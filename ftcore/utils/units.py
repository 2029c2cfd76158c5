"""Sizes and durations as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import timedelta

SIZES: Mapping[str, int] = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
"""Unit -> bytes (decimal)."""
DURATIONS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Unit -> seconds."""
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", re.ASCII)


def in_units(size: float) -> str:
    """A number of bytes in decimal units, three digits: ``1.23 GB``."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size:.0f} GB"


def as_clock(seconds: float) -> str:
    """A duration in whole seconds, rounded down: ``0:07:09``, ``2 days, 1:00:00``."""
    return str(timedelta(seconds=int(seconds)))


def parse_size(text: str) -> int:
    """Bytes of a text such as ``500MB`` or ``1.5 GB``, rounded up.

    Raises:
        ValueError: it is not a number with a unit of `SIZES`.
    """
    return math.ceil(_amount(text, SIZES, "20GB"))


def parse_duration(text: str) -> float:
    """Seconds of a text such as ``12h`` or ``30d``.

    Raises:
        ValueError: it is not a number with a unit of `DURATIONS`.
    """
    return _amount(text, DURATIONS, "30d")


def _amount(text: str, units: Mapping[str, int], example: str) -> float:
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f"write a number with a unit, such as {example}; units are {', '.join(units)}")
    return float(match[1]) * units[match[2]]
