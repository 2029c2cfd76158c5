"""Batches by tokens: every row once an epoch, never too many, the same for n processes as for n times accumulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.training.batching.token_budget import TokenBatches, row_tokens
from ftcore.training.callbacks.progress import read_log

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 4, 16, 5, 28, 11, 8]
OPTIONS = {"tokens_per_batch": 40, "per_device_train_batch_size": None, "max_steps": -1, "num_train_epochs": 3}


def epoch(batches: TokenBatches, number: int) -> list[list[int]]:
    batches.set_epoch(number)
    return list(batches)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    tokens=st.integers(1, 100),
    processes=st.integers(1, 4),
    seed=st.none() | st.integers(0, 3),
)
def test_every_row_once_and_never_too_many(lengths: list[int], tokens: int, processes: int, seed: int | None) -> None:
    """Whatever the lengths: as many batches in each epoch and process, and fillers only where rows are too few."""
    every = [TokenBatches(np.array(lengths), tokens, 3, seed, process, processes) for process in range(processes)]
    assert len({len(batches) for batches in every}) == 1
    for number in range(3):
        taken = [epoch(batches, number) for batches in every]
        assert {len(batches) for batches in taken} == {len(every[0])}
        rows = [row for batches in taken for batch in batches for row in batch]
        assert sorted(row for row in rows if row >= 0) == list(range(len(lengths)))
        for batch in (batch for batches in taken for batch in batches):
            assert batch
            assert len(batch) == 1 or sum(lengths[row] for row in batch) <= tokens
        if len(rows) > len(lengths):
            assert len(lengths) < len(every[0]) * processes


def test_the_order_is_that_of_batches_by_rows() -> None:
    batches = TokenBatches(np.array(LENGTHS), 40, 3, 7)
    for number in range(3):
        assert [row for batch in epoch(batches, number) for row in batch] == batches.order()
    assert epoch(batches, 0) != epoch(batches, 1)


def test_processes_take_what_one_accumulates() -> None:
    """Batch k of process p of two is batch 2k + p of one."""
    one = TokenBatches(np.array(LENGTHS), 40, 3, 7)
    two = [TokenBatches(np.array(LENGTHS), 40, 3, 7, process, 2) for process in range(2)]
    assert len(one) == 2 * len(two[0])
    for number in range(3):
        taken = [batch for both in zip(*(epoch(batches, number) for batches in two), strict=True) for batch in both]
        assert taken == epoch(one, number)


def test_batches_are_nearly_full() -> None:
    """Of 10,000 rows of alpaca's lengths (a log-normal distribution), at 4,096 tokens."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.1, 0.6, 10_000), 10, 1024).astype(int)
    batches = TokenBatches(lengths, 4096, 3, 42)
    assert lengths.sum() / (len(batches) * 4096) > 0.95


@pytest.mark.slow
def test_a_run_trains_the_batches_and_counts_its_steps(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """The loss of each step is the mean over the labels of its batch's rows, as a plain padded model has it."""
    trainer = trainer_of(tokens(LENGTHS), **OPTIONS, learning_rate=1e-12)
    rows, batches = tokens(LENGTHS), trainer.train_loader().batch_sampler
    expected = []
    for number in range(3):
        taken = epoch(batches, number)
        expected += [_plain(trainer.model, [rows[row] for row in batch]) for batch in taken]
    output = trainer.train()
    assert output.global_step == 3 * len(batches)
    found = {
        line["current_steps"]: line["loss"]
        for line in read_log(tmp_path / "out" / "trainer_log.jsonl")
        if "loss" in line
    }
    assert found == {step + 1: pytest.approx(loss, rel=1e-4) for step, loss in enumerate(expected) if loss is not None}


def _plain(model: Any, rows: list[Any]) -> float | None:
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row["input_ids"].astype(np.int64))
            logps = model(ids[None], use_cache=False).logits[0].double().log_softmax(-1)
            for place in range(1, len(ids)):
                total -= row["weights"][place] * float(logps[place - 1, ids[place]])
                weight += row["weights"][place]
    return total / weight if weight else None


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(stops_after: Any, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    options = OPTIONS | {"gradient_accumulation_steps": 2, "tokens_per_batch": 24, "num_train_epochs": 2}
    ends = []
    for name, stops in (("whole", False), ("stopped", True), ("stopped", False)):
        trainer = trainer_of(tokens(LENGTHS), **options, output_dir=str(tmp_path / name))
        if stops:
            trainer.add_callback(stops_after(5))
        trainer.train()
        ends.append(torch.cat([t.detach().view(-1) for t in trainer.model.parameters() if t.requires_grad]))
    assert not torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_pairs_count_their_prompt_twice() -> None:
    from ftcore.data.datasets.preference_dataset import FeedbackDataset, PairDataset

    class Parts:
        lengths = np.array([5, 3, 4, 2, 0, 7])

        def __len__(self) -> int:
            return 6

    assert row_tokens(PairDataset(Parts())).tolist() == [17, 9]  # type: ignore[arg-type]
    assert row_tokens(FeedbackDataset(Parts())).tolist() == [17, 9]  # type: ignore[arg-type]
