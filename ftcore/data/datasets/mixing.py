"""Mixes several datasets as the library ``datasets`` does, which LLaMA-Factory uses.

``concat`` concatenates the datasets. The other strategies alternate between them, or draw with probabilities:
``interleave_under`` until the first dataset is exhausted, ``interleave_over`` until every dataset has been exhausted
once (smaller ones restart), ``interleave_once`` until every row has been taken once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_BLOCK = 1000
"""Draws per block, as in ``datasets``: the same seed gives the same mixture."""
_NOTHING = object()


def mixed_rows(
    lengths: Sequence[int], strategy: str, probabilities: Sequence[float] | None, seed: int
) -> npt.NDArray[np.int64]:
    """Row indices of the mixture, counted over the concatenated datasets.

    Args:
        lengths: number of rows of each dataset, above 0.
        strategy: see the module.
        probabilities: probability of each dataset, above 0; None to alternate.
        seed: seed of the draws.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    if strategy == "concat":
        return np.arange(sum(lengths), dtype=np.int64)
    taken = _sources(np.array(lengths), strategy, probabilities, seed)
    rows = np.empty(len(taken), dtype=np.int64)
    for source, length in enumerate(lengths):
        places = np.flatnonzero(taken == source)
        rows[places] = np.arange(len(places)) % length + starts[source]
    return rows


def _sources(
    lengths: npt.NDArray[np.int64], strategy: str, probabilities: Sequence[float] | None, seed: int
) -> npt.NDArray[np.int64]:
    """The dataset index of each row."""
    blocks: list[npt.NDArray[np.int64]] = []
    counts = np.zeros(len(lengths), dtype=np.int64)
    enough = np.any if strategy == "interleave_under" else np.all
    draws = _draws(len(lengths), probabilities, seed)
    while not enough(counts >= lengths):
        blocks.append(next(draws))
        counts += np.bincount(blocks[-1], minlength=len(lengths))
    drawn = np.concatenate(blocks)
    ends = np.array([_nth(drawn == source, length) for source, length in enumerate(lengths.tolist())])
    if strategy == "interleave_once":
        within = np.arange(len(drawn))
        return drawn[within <= ends[drawn]]
    last = ends[ends >= 0].min() if strategy == "interleave_under" else ends.max()
    if probabilities is None and strategy == "interleave_over":
        last = lengths.max() * len(lengths) - 1  # the last round is completed
    if probabilities is None and strategy == "interleave_under":
        last = lengths.min() * len(lengths) - 1
    return drawn[: last + 1]


def _nth(hits: npt.NDArray[np.bool_], count: int) -> int:
    """The position of the ``count``-th hit; -1 if there are fewer."""
    places = np.flatnonzero(hits)
    return int(places[count - 1]) if len(places) >= count else -1


def _draws(count: int, probabilities: Sequence[float] | None, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Endless blocks of dataset indices."""
    random = np.random.default_rng(seed)
    turns = np.arange(count * _BLOCK) % count
    while True:
        yield turns if probabilities is None else random.choice(count, size=_BLOCK, p=probabilities)


def mixed(
    sources: Sequence[Callable[[], Iterator[T]]], strategy: str, probabilities: Sequence[float] | None, seed: int
) -> Iterator[T]:
    """Mixes datasets of unknown length, one row at a time.

    Args:
        sources: each restarts its dataset.
        strategy, probabilities, seed: see `mixed_rows`. The result differs only in the last round:
            ``interleave_under`` and ``interleave_over`` stop at the row that exhausts the deciding dataset.
    """
    if strategy == "concat":
        for source in sources:
            yield from source()
        return
    rows = [source() for source in sources]
    ahead = [next(one, _NOTHING) for one in rows]  # a dataset is exhausted with its last row
    used_up = [row is _NOTHING for row in ahead]
    enough = any if strategy == "interleave_under" else all
    order = chain.from_iterable(map(np.ndarray.tolist, _draws(len(sources), probabilities, seed)))
    for number in cycle(range(len(sources))) if probabilities is None else order:
        if enough(used_up):
            return
        if ahead[number] is _NOTHING:
            continue
        row, ahead[number] = ahead[number], next(rows[number], _NOTHING)
        yield row  # type: ignore[misc]
        if ahead[number] is _NOTHING:
            used_up[number] = True
            if strategy != "interleave_once":
                rows[number] = sources[number]()
                ahead[number] = next(rows[number], _NOTHING)
