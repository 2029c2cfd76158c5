"""Batches: labels shifted inside each sequence, and back to rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ftcore.training.batching.collators import IGNORED, collate, padded


def row(ids: list[int], weights: list[float], index: int = 0) -> dict[str, object]:
    return {"input_ids": np.array(ids, np.int32), "weights": np.array(weights, np.float32), "index": index}


def test_whole_batch() -> None:
    batch = collate([row([5, 6, 7], [1, 0, 0.5], 4), row([8], [1], 9), row([9, 10], [1, 1], 2)])
    found = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in batch.items()}
    assert found == {
        "input_ids": [[5, 6, 7, 8, 9, 10]],
        "position_ids": [[0, 1, 2, 0, 0, 1]],
        "labels": [[IGNORED, 7, IGNORED, IGNORED, 10, IGNORED]],
        "weights": [[0, 0.5, 0, 0, 1, 0]],
        "positions": [1, 4],
        "cu_seqlens": [0, 3, 4, 6],
        "max_len": 3,
        "index": [4, 9, 2],
    }


@given(st.lists(st.lists(st.tuples(st.integers(1, 99), st.floats(0, 1, width=32)), min_size=1, max_size=8), min_size=1))
def test_labels_are_each_rows_own(rows: list[list[tuple[int, float]]]) -> None:
    """The labels and weights, gathered, are every row's tokens from the second on that have a weight, in order."""
    batch = collate([row([token for token, _ in pairs], [weight for _, weight in pairs]) for pairs in rows])
    wanted = [(token, weight) for pairs in rows for token, weight in pairs[1:] if weight]
    positions = batch["positions"]
    found = zip(batch["labels"][0, positions].tolist(), batch["weights"][0, positions].tolist(), strict=True)
    assert list(found) == wanted
    assert (batch["labels"] != IGNORED).sum() == len(wanted)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_padded_finds_every_label(lengths: list[int]) -> None:
    """Row and column of a label hold the token that the flat position holds, and the mask counts the tokens."""
    rows = [row(list(range(10 * n, 10 * n + length)), [1] * length) for n, length in enumerate(lengths)]
    batch = collate(rows)
    table = padded(batch)
    flat = batch["input_ids"][0, batch["positions"]]
    assert table["input_ids"][table["rows"], table["columns"]].tolist() == flat.tolist()
    assert table["attention_mask"].sum(-1).tolist() == lengths
