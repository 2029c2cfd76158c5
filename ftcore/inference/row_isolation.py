"""Batched work in which the failure of an item does not affect other items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ftcore.api.inference_types import Chunk

A = TypeVar("A")
B = TypeVar("B")


def isolated(work: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> list[B | Exception]:
    """The result of each item; if the batch raises an exception, each item is processed alone.

    Args:
        work: returns one result per item, in order; must not have side effects when it raises.
        items: at least one.

    Returns:
        Results in order; the exception for an item that also fails alone.
    """
    found = _tried(work, items)
    if not isinstance(found, Exception):
        return list(found)
    if len(items) == 1:
        return [found]
    del found  # its traceback keeps the memory of the failed batch
    alone = [_tried(work, [item]) for item in items]
    return [result if isinstance(result, Exception) else result[0] for result in alone]


def failed_chunk(index: int, error: Exception, prompt_tokens: int) -> Chunk:
    """The last chunk of a prompt that failed.

    Args:
        index: number of the prompt.
        error: the exception.
        prompt_tokens: number of tokens of the prompt.
    """
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return Chunk(index, "", "error", prompt_tokens=prompt_tokens, error=reason)


def _tried(work: Callable[[Sequence[A]], Sequence[B]], items: Sequence[A]) -> Sequence[B] | Exception:
    try:
        return work(items)
    except Exception as error:  # the caller reports it for these items
        return error
