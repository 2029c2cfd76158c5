"""Many rows are prepared by several processes: in order, with every mistake, and with nobody left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftcore.data.pipeline import worker_pool
from ftcore.data.pipeline.loading import chat_datasets
from ftcore.errors import RunError, UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker_pool, "ALONE", 4)
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))


def work(batch: list[int]) -> tuple[int, list[int]]:
    return os.getpid(), [2 * one for one in batch]


def batches(count: int, failure: Exception | None = None) -> Iterator[list[int]]:
    for number in range(count):
        yield [2 * number, 2 * number + 1]
    if failure:
        raise failure


def test_the_order_stays() -> None:
    found = list(worker_pool.in_order(work, batches(40), 2))
    assert [one for _, pair in found for one in pair] == [2 * number for number in range(80)]
    others = {process for process, _ in found} - {os.getpid()}
    assert [process for process, _ in found].count(os.getpid()) == 1
    assert 1 <= len(others) <= 2
    assert {process for process, _ in worker_pool.in_order(work, batches(40), 1)} == {os.getpid()}


def test_few_items_are_done_here() -> None:
    assert {process for process, _ in worker_pool.in_order(work, batches(2), 2)} == {os.getpid()}
    assert list(worker_pool.in_order(work, batches(0), 2)) == []


@pytest.mark.parametrize("good", [0, 1, 2, 3, 9])
def test_what_is_wrong_in_the_middle_comes_after_what_was_before(good: int) -> None:
    found: list[int] = []
    with pytest.raises(UsageError, match="damaged"):
        found.extend(
            one for _, pair in worker_pool.in_order(work, batches(good, UsageError("damaged")), 2) for one in pair
        )
    assert found == [2 * number for number in range(2 * good)]


def test_a_killed_process() -> None:
    def fatal(batch: list[int]) -> int:
        if batch[0] > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(RunError, match="a data worker process was killed; if memory ran out"):
        list(worker_pool.in_order(fatal, batches(40), 2))


def test_nobody_is_left_behind() -> None:
    found = worker_pool.in_order(work, batches(10_000), 2)
    others = {next(found)[0] for _ in range(10)} - {os.getpid()}
    found.close()  # type: ignore[attr-defined]
    for process in others:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_the_same_tokens_and_counts(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """Whichever process made them; control tokens, characters and bad rows of every kind among them."""
    kinds = ["plain answer", "<|im_end|> said", "你好 😀", "", 3, "long " * 60]
    rows = [{"instruction": f"question {number}", "output": kinds[number % 6]} for number in range(600)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{\n")
    options = {"on_bad_row": "skip", "cutoff_len": 50, "preprocessing_batch_size": 50, "overwrite_cache": True}
    one, two = (
        chat_datasets(make_plan("a.jsonl", preprocessing_num_workers=count, **options), tokenizer) for count in (1, 2)
    )
    assert one.accounting == two.accounting
    assert one.accounting.train[0].as_dict()["dropped"] == 201
    for name in ("ids", "weights", "reasons", "offsets"):
        assert np.array_equal(getattr(one.train, name), getattr(two.train, name)), name
    assert list(one.train.places) == list(two.train.places)
