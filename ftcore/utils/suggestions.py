"""Did you mean: which known names are near a wrong one, and how a message says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5
"""Least similarity of a suggestion, from 0 to 1: at 0.5 it shares half of its letters (`difflib`)."""


def near_names(name: str, known: Iterable[str], most: int = 3, cutoff: float = CUTOFF) -> list[str]:
    """The known names that are nearest to a wrong one, the nearest first.

    Args:
        name: as the user wrote it.
        known: what exists, in any order, with repetitions or without.
        most: at most so many.
        cutoff: least similarity.
    """
    return difflib.get_close_matches(name, sorted(set(known)), n=most, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, most: int = 3, cutoff: float = CUTOFF) -> str:
    """``did you mean a, b or c?``, or what is said where no known name is near.

    Args:
        name: as the user wrote it.
        known: what exists.
        otherwise: said instead.
        most: at most so many names.
        cutoff: least similarity.
    """
    return question(near_names(name, known, most, cutoff)) or otherwise


def question(names: Iterable[str]) -> str:
    """``did you mean a, b or c?``; empty without a name."""
    *first, last = [*names] or [""]
    if not last:
        return ""
    return f"did you mean {', '.join(first)} or {last}?" if first else f"did you mean {last}?"
