"""Applies changes of a model one by one: each is compared with the model without it, and undone if it differs."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable, Sequence

from ftcore.api.model_transform import Change, NotComparableError, Output
from ftcore.training.numerics import equivalent

log = logging.getLogger(__name__)


def apply_changes(changes: Iterable[Change]) -> tuple[list[Change], list[Change]]:
    """Applies changes in their order.

    Args:
        changes: each is applied before the next one is taken.

    Returns:
        The changes that stay, and those that were refused, with `Change.refused`.
    """
    kept: list[Change] = []
    refused: list[Change] = []
    for change in changes:
        change.refused = _applied(change)
        (refused if change.refused else kept).append(change)
    return kept, refused


def undo_changes(changes: Sequence[Change]) -> None:
    """Undoes applied changes, the last one first."""
    for change in reversed(changes):
        change.undo()


def _applied(change: Change) -> str:
    """Applies a change, and undoes it if outputs differ; returns the reason then."""
    try:
        expected = change.outputs()
    except Exception as error:  # the model's own code may raise anything for an input that it does not expect
        return _reason(error)
    change.apply()
    if not expected:
        return ""
    try:
        why = difference(change.outputs(), expected)
    except Exception as error:  # compilers raise errors of many types
        why = _reason(error)
    if why:
        change.undo()
    return why


def difference(found: Sequence[Output], expected: Sequence[Output]) -> str:
    """The first output that differs by more than its tolerance, as a reason; empty for none."""
    for one, other in zip(found, expected, strict=False):
        if not _same(one, other):
            return f"{other.name} computes other results"
    return "" if len(found) == len(expected) else "the number of results differs"


def _same(found: Output, expected: Output) -> bool:
    dtype = getattr(found.value, "dtype", None) == getattr(expected.value, "dtype", None)
    return dtype and equivalent(found.value, expected.value, expected.tolerance, norm=expected.norm)


def _reason(error: Exception) -> str:
    log.debug("a change cannot be compared", exc_info=True)
    if isinstance(error, NotComparableError):
        return str(error)
    return textwrap.shorten(f"{type(error).__name__}: {error}".split("\n\n")[0], 200)
