"""«Did you mean»: known names that are similar to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5
"""Minimum similarity of a suggestion, from 0 to 1 (`difflib`); 0.5: half of the letters match."""


def near_names(name: str, known: Iterable[str], most: int = 3, cutoff: float = CUTOFF) -> list[str]:
    """The known names that are most similar to a wrong one, most similar first.

    Args:
        name: the wrong name.
        known: the known names, in any order; may have duplicates.
        most: maximum number of names.
        cutoff: minimum similarity.
    """
    return difflib.get_close_matches(name, sorted(set(known)), n=most, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, most: int = 3, cutoff: float = CUTOFF) -> str:
    """``did you mean a, b or c?``, or another text if no known name is similar.

    Args:
        name: the wrong name.
        known: the known names.
        otherwise: the other text.
        most: maximum number of names.
        cutoff: minimum similarity.
    """
    return question(near_names(name, known, most, cutoff)) or otherwise


def question(names: Iterable[str]) -> str:
    """``did you mean a, b or c?``; empty without a name."""
    *first, last = [*names] or [""]
    if not last:
        return ""
    return f"did you mean {', '.join(first)} or {last}?" if first else f"did you mean {last}?"
