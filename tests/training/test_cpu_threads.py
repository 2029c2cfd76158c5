"""Work side by side: the same numbers whoever is first, and one at a time where that cannot be."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ft_plugins.backends.cpu.executor import MAX_SHARE, ConcurrentExecutor
from ft_plugins.backends.cpu.thread_pool import (
    MIN_TOKENS,
    ThreadPool,
    has_dynamic_rope,
    in_pool,
    uses_random_numbers,
)
from ftcore.resources import hardware
from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.batching.loaders import ROWS
from ftcore.training.callbacks.progress import read_log
from ftcore.training.step.executor import add_gradients, loss_and_gradients
from ftcore.training.step.micro_batching import is_balanced, parts, regroup, split_concurrent

LENGTHS = [90, 170, 60, 130, 120, 30, 210, 40]
CLOCK = ("throughput", "elapsed_time", "remaining_time")
HANGING = 60
"""Seconds after which a test fails rather than hangs."""
TWO = ConcurrentExecutor(ThreadPool(2), concurrent_training=True, split=None)


# ---- the pool ----


def test_results_come_in_the_jobs_order(two_threads: None) -> None:
    """Of each pair the second ends first."""
    pool, ended = ThreadPool(5), [threading.Event() for _ in range(4)]
    seen: list[tuple[int, int]] = []

    def job(number: int) -> tuple[int, bool, int]:
        assert number % 2 or ended[number + 1].wait(HANGING)
        seen.append((number, threading.get_ident()))
        ended[number].set()
        return number, in_pool(), torch.get_num_threads()

    assert list(pool.each([partial(job, number) for number in range(4)])) == [(n, True, 2) for n in range(4)]
    assert [number for number, _ in seen] == [1, 0, 3, 2]
    assert len({thread for _, thread in seen}) == NUM_WORKERS
    assert not in_pool()
    assert torch.get_num_threads() == 2


def test_modes_are_the_callers() -> None:
    def modes() -> tuple[bool, bool, torch.dtype]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    pool = ThreadPool(2)
    assert next(pool.each([modes])) == (True, False, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert pool.run_one(modes) == (False, True, torch.bfloat16)
    assert pool.run_one(partial(pool.run_one, modes)) == (True, False, torch.float32)  # of a member: its own work


def test_an_error_waits_for_what_is_under_way() -> None:
    pool, begun, ended, under_way = ThreadPool(2), [], [], threading.Event()

    def slow() -> None:
        begun.append(True)
        under_way.set()
        time.sleep(0.1)
        ended.append(True)

    def wrong() -> None:
        assert under_way.wait(HANGING)
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(pool.each([wrong, *[slow] * 50]))
    count = len(ended)
    assert len(begun) == count
    assert 1 <= count < 50
    list(pool.each([dict] * NUM_WORKERS))
    assert len(begun) == count


# ---- passes ----


@given(
    sizes=st.lists(st.integers(1, 900), min_size=2, max_size=20), limit=st.integers(1, 2000), most=st.integers(1, 20)
)
def test_every_row_is_in_one_half(sizes: list[int], limit: int, most: int) -> None:
    found = split_concurrent(sizes, limit, most, TWO)
    assert sorted(row for rows in found for row in rows) == list(range(len(sizes)))
    assert all(rows == sorted(rows) for rows in found)
    assert all(found)
    # dealt out to whoever is free, what the one has more than the other is less than his smallest row, or one row
    done: list[list[int]] = [[] for _ in range(NUM_WORKERS)]
    for rows in found:
        min(done, key=sum).extend(sizes[row] for row in rows)
    less, more = sorted(done, key=sum)
    assert len(more) == 1 or sum(more) - min(more) <= sum(less)
    assert len(found) <= max(NUM_WORKERS, sum(sizes) // MIN_TOKENS)


def test_halves_of_a_batch() -> None:
    assert split_concurrent([100, 90, 80, 70, 60, 50], 1536, 6, TWO) == [[1, 2, 5], [0, 3, 4]][::-1]
    assert split_concurrent([400, 300, 200, 100], 1536, 4, TWO) == [[0, 3], [1, 2]]
    assert split_concurrent([400] * 8, 1600, 8, TWO) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    # four alike would be 500, 402, 338, 262: one of two with 762 then, the other with 740
    assert split_concurrent([500, 402, 284, 54, 262], 1000, 5, TWO) == [[0], [1], [2, 3], [4]]
    assert split_concurrent([2000, 10, 10], 1024, 3, TWO) == [[0], [1], [2]]
    assert split_concurrent([1, 1, 191, 191], 1, 1, TWO) == [[1, 3], [2], [0]]


def test_halves_that_are_none() -> None:
    """A row that outweighs the others is computed by all threads."""
    assert is_balanced([620, 380], MAX_SHARE, NUM_WORKERS)
    assert not is_balanced([630, 370], MAX_SHARE, NUM_WORKERS)
    assert is_balanced([742, 537, 342, 141], 0.5017, NUM_WORKERS)
    assert not is_balanced([742, 537, 342, 141], 0.5, NUM_WORKERS)
    assert not is_balanced([1000], MAX_SHARE, NUM_WORKERS)


# ---- a run ----


def done(trainer: Any, folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[bool]]:
    """Log lines, what was trained, and for each pass whether a member of the pool did it."""
    honest, members = trainer.objective.loss_sum, []

    def watched(batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            members.append(in_pool())
        return honest(batch)

    trainer.objective.loss_sum = watched
    trainer.train()
    lines = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(folder / "trainer_log.jsonl")]
    trained = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    return lines, trained, members


WAYS: list[dict[str, Any]] = [
    {},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    {"gradient_accumulation_steps": 8, "per_device_train_batch_size": 1},
    {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "cache_frozen_prefix": True},
    {"disable_gradient_checkpointing": False},
    {"tokens_per_pass": 300},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_the_step_is_that_of_the_whole_batch(
    options: Any, two_threads: None, trainer_of: Any, tokens: Any, tmp_path: Path
) -> None:
    """In float64: log lines and weights; and the same bytes again, whoever was first."""
    found = []
    for name, wish in (("whole", {"tokens_per_pass": False}), ("halves", {}), ("again", {})):
        values = {"per_device_train_batch_size": 8, "max_steps": 2, "output_dir": str(tmp_path / name)} | options | wish
        trainer = trainer_of(tokens(LENGTHS), dtype=torch.float64, **values)
        trainer.executor.concurrent_training = True  # of a tiny model adapters are a large part
        found.append(done(trainer, tmp_path / name))
    (lines, trained, whole), (halves_lines, halves, members), (_, again, _) = found
    assert not any(whole)
    assert all(members)
    assert len(members) >= 2 * 2
    # transformers adds up the losses of micro-batches in float32
    assert halves_lines == [pytest.approx(line, rel=1e-6) for line in lines]
    for name, expected in trained.items():
        assert (halves[name] - expected).norm() <= 1e-9 * expected.norm(), name
        assert torch.equal(halves[name], again[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"finetuning_type": "full"}], ids=["lora", "full"])
def test_in_bfloat16(
    options: Any, two_threads: None, trainer_of: Any, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Casts of weights are each thread's own; the same bytes again, and near to what all threads together make."""
    monkeypatch.setattr(hardware, "detect", lambda: hardware.Hardware(memory=64 << 30, cpu_bf16=True))
    found = []
    for name, wish in (("whole", {"tokens_per_pass": False}), ("halves", {}), ("again", {})):
        values = {"per_device_train_batch_size": 8, "max_steps": 4, "output_dir": str(tmp_path / name), "bf16": True}
        trainer = trainer_of(tokens(LENGTHS), **(values | options | wish))
        trainer.executor.concurrent_training = True
        found.append(done(trainer, tmp_path / name))
    (lines, _, whole), (halves_lines, halves, members), (_, again, _) = found
    assert not any(whole)
    assert all(members)
    assert len(members) >= 4 * 2
    assert [line["loss"] for line in halves_lines] == pytest.approx([line["loss"] for line in lines], rel=5e-3)
    assert [line["grad_norm"] for line in halves_lines] == pytest.approx(
        [line["grad_norm"] for line in lines], rel=0.03
    )
    for name, value in halves.items():
        assert torch.equal(value, again[name]), name


def test_gradients_lie_as_weights_do(two_threads: None, trainer_of: Any, tokens: Any) -> None:
    """torch's fused AdamW reads both in one order; a transposed gradient would train other numbers unseen."""
    trainer = trainer_of(tokens(LENGTHS), per_device_train_batch_size=8)
    batch = next(iter(trainer.train_loader()))
    trainer.executor.concurrent_training = True
    trained = [tensor for tensor in trainer.model.parameters() if tensor.requires_grad]
    job = partial(loss_and_gradients, trainer.objective.loss_sum, trained)
    assert len(add_gradients(trainer.each(job, parts(trainer, batch)), trained)) == 2
    assert all(tensor.grad.stride() == tensor.stride() for tensor in trained)
    assert any(tensor.grad.norm() > 0 for tensor in trained)


def test_memory_that_runs_out(
    two_threads: None, trainer_of: Any, tokens: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(tokens([70] * 8), per_device_train_batch_size=8, max_steps=1)
    trainer.executor.concurrent_training = True
    honest = trainer.objective.loss_sum

    def small(batch: Any) -> torch.Tensor:
        if len(batch["index"]) > 2:
            raise MemoryError
        return honest(batch)

    trainer.objective.loss_sum = small
    _, _, members = done(trainer, tmp_path / "out")
    assert "with 8 rows at a time: this step and all later ones use micro-batches of 4 rows" in capsys.readouterr().out
    assert members[-4:] == [True] * 4


def test_one_row_at_a_time_goes_two_at_a_time(two_threads: None, trainer_of: Any, tokens: Any) -> None:
    """Accumulated rows are done side by side up to the limit; what is counted of each micro-batch stays."""
    values = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "disable_shuffling": True}
    trainer = trainer_of(tokens([200, 300, 400, 100]), tokens_per_pass=600, **values)
    trainer.executor.concurrent_training = True
    batches = regroup(trainer, list(trainer.train_loader()))
    assert [len(batch[ROWS]) for batch in batches] == [2, 0, 2, 0]
    assert [batch["input_ids"].numel() for batch in batches] == [200, 300, 400, 100]


@pytest.mark.slow
def test_where_nobody_works_side_by_side(two_threads: None, trainer_of: Any, tokens: Any) -> None:
    rows = tokens(LENGTHS)
    assert trainer_of(rows).executor.workers == 2
    assert trainer_of(rows, finetuning_type="full").executor.workers == 2
    assert not trainer_of(rows, finetuning_type="full").runs_concurrently
    for options in ({"tokens_per_pass": False}, {"lora_dropout": 0.1}, {"neftune_noise_alpha": 5}):
        assert trainer_of(rows, **options).executor.workers == 1
    torch.set_num_threads(1)
    assert trainer_of(rows).executor.workers == 1


def test_what_a_model_draws(small_models: Any) -> None:
    model = small_models["llama"].make()
    assert not uses_random_numbers(model)
    assert not has_dynamic_rope(model)
    model.config.attention_dropout = 0.1
    assert uses_random_numbers(model)
    model.config.attention_dropout = 0.0
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert has_dynamic_rope(model)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(
    stops_after: Any, two_threads: None, trainer_of: Any, tokens: Any, tmp_path: Path
) -> None:
    ends = []
    for name, stops in (("whole", False), ("stopped", True), ("stopped", False)):
        values = {"max_steps": 4, "per_device_train_batch_size": 5, "output_dir": str(tmp_path / name)}
        trainer = trainer_of(tokens(LENGTHS), save_strategy="steps", save_steps=500, **values)
        trainer.executor.concurrent_training = True
        if stops:
            trainer.add_callback(stops_after(2))
        trainer.train()
        assert trainer.runs_concurrently
        if not stops:
            trained = [tensor for tensor in trainer.model.parameters() if tensor.requires_grad]
            ends.append(torch.cat([tensor.detach().view(-1) for tensor in trained]))
    assert torch.equal(*ends)
