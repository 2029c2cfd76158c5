"""Work on several items at once, of which one that fails fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ftcore.api.inference_types import Chunk

A = TypeVar("A")
B = TypeVar("B")


def isolated(work: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> list[B | Exception]:
    """The result of each item; where the work on all of them raises, each is worked on by itself.

    Args:
        work: gives a result for each of some items, in order, and leaves nothing behind when it raises.
        items: at least one.

    Returns:
        Of an item that fails by itself what it raised.
    """
    found = _tried(work, items)
    if not isinstance(found, Exception):
        return list(found)
    if len(items) == 1:
        return [found]
    del found  # its traceback holds what the work on all of them had in memory
    alone = [_tried(work, [item]) for item in items]
    return [result if isinstance(result, Exception) else result[0] for result in alone]


def failed_chunk(index: int, error: Exception, prompt_tokens: int) -> Chunk:
    """What a prompt is answered with that failed alone.

    Args:
        index: of the prompt.
        error: that it raised.
        prompt_tokens: of the prompt.
    """
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return Chunk(index, "", "error", prompt_tokens=prompt_tokens, error=reason)


def _tried(work: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> Sequence[B] | Exception:
    try:
        return work(items)
    except Exception as error:  # whatever it is, it is the items', and the caller tells them
        return error
