"""Python's garbage collector, which goes through all objects again and again while libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 50_000
"""Objects that are made between two collections, where Python has 700 or 2,000."""


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """For what makes many objects that stay: 1.5 of the 8 CPU seconds of a run's start were collections.

    Rarer ones are not none: what loading leaves in cycles does not pile up.
    """
    before = gc.get_threshold()
    gc.set_threshold(_YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def freeze_gc() -> None:
    """Whatever there is by now stays to the end and is not gone through any more; for when libraries are imported.

    Trainer begins with a collection of everything, 0.25 CPU seconds.
    """
    gc.freeze()
