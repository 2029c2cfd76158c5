"""Mixtures are those of the library ``datasets``; every row is where its strategy wants it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data.datasets.mixing import mixed, mixed_rows

STRATEGIES = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
shares = st.lists(st.integers(1, 9), min_size=4, max_size=4)


def probabilities(parts: list[int], count: int) -> list[float]:
    return [part / sum(parts[:count]) for part in parts[:count]]


def test_by_hand() -> None:
    def rows(strategy: str) -> list[int]:
        return mixed_rows([3, 4, 3], strategy, None, 0).tolist()

    assert rows("concat") == list(range(10))
    assert rows("interleave_under") == [0, 3, 7, 1, 4, 8, 2, 5, 9]
    assert rows("interleave_once") == [0, 3, 7, 1, 4, 8, 2, 5, 9, 6]
    assert rows("interleave_over") == [0, 3, 7, 1, 4, 8, 2, 5, 9, 0, 6, 7]


@given(lengths=sizes, parts=st.none() | shares, strategy=st.sampled_from(sorted(STRATEGIES)), seed=st.integers(0, 99))
def test_as_datasets_does(lengths: list[int], parts: Any, strategy: str, seed: int) -> None:
    library = pytest.importorskip("datasets")
    chances = parts and probabilities(parts, len(lengths))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tables = [library.Dataset.from_dict({"row": list(range(start, end))}) for start, end in pairwise(starts)]
    expected = library.interleave_datasets(
        tables, probabilities=chances, seed=seed, stopping_strategy=STRATEGIES[strategy]
    )
    assert mixed_rows(lengths, strategy, chances, seed).tolist() == expected["row"][:]


@given(lengths=sizes, parts=st.none() | shares, strategy=st.sampled_from(["concat", *STRATEGIES]))
def test_streams_are_mixed_alike(lengths: list[int], parts: Any, strategy: str) -> None:
    chances = parts and probabilities(parts, len(lengths))
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    sources = [lambda a=start, b=end: iter(range(a, b)) for start, end in pairwise(starts)]
    found = list(mixed(sources, strategy, chances, 3))
    rows = mixed_rows(lengths, strategy, chances, 3).tolist()
    assert found == rows[: len(found)]
    assert len(rows) - len(found) < len(lengths)  # what is left of the turn
    if chances or strategy in ("concat", "interleave_once"):
        assert found == rows


@given(lengths=sizes, parts=st.none() | shares, seed=st.integers(0, 99))
def test_how_often_each_row_is_taken(lengths: list[int], parts: Any, seed: int) -> None:
    chances = parts and probabilities(parts, len(lengths))
    counts = {
        strategy: Counter(mixed_rows(lengths, strategy, chances, seed).tolist()) for strategy in ("concat", *STRATEGIES)
    }
    every = set(range(sum(lengths)))
    for strategy in ("concat", "interleave_once"):
        assert counts[strategy] == Counter(every)
    assert set(counts["interleave_over"]) == every
    assert set(counts["interleave_under"].values()) <= {1}
    for strategy in counts:
        again = mixed_rows(lengths, strategy, chances, seed).tolist()
        assert Counter(again) == counts[strategy]


def test_probabilities_are_kept_to() -> None:
    rows = mixed_rows([10_000, 10_000], "interleave_under", [0.8, 0.2], 1)
    assert (rows < 10_000).mean() == pytest.approx(0.8, abs=0.01)
    assert not np.array_equal(rows, mixed_rows([10_000, 10_000], "interleave_under", [0.8, 0.2], 2))


def test_an_empty_stream() -> None:
    assert list(mixed([lambda: iter(()), lambda: iter([1, 2])], "interleave_once", None, 0)) == [1, 2]
    assert list(mixed([lambda: iter(()), lambda: iter([1, 2])], "interleave_under", None, 0)) == []
