"""Micro-batches in passes of at most so many tokens: the same step, and never more at a time than asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log
from ftcore.training.step.micro_batching import balance

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 4, 16, 5, 28, 11, 80, 8, 7, 13]
CLOCK = ("throughput", "elapsed_time", "remaining_time")


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30), limit=st.integers(1, 60), most=st.integers(1, 31))
def test_every_row_once_in_the_fewest_passes(sizes: list[int], limit: int, most: int) -> None:
    found = balance(sizes, limit, most)
    assert [row for rows in found for row in rows] == list(range(len(sizes)))
    for rows in found:
        assert len(rows) == 1 or (sum(sizes[row] for row in rows) <= limit and len(rows) <= most)
    filled, start = 0, 0
    while start < len(sizes):  # as many as fit, each time
        end = start + 1
        while end < len(sizes) and end - start < most and sum(sizes[start : end + 1]) <= limit:
            end += 1
        filled, start = filled + 1, end
    assert len(found) == filled


def test_passes_are_of_like_size() -> None:
    assert balance([10] * 8, 70, 8) == [[0, 1, 2, 3], [4, 5, 6, 7]]  # and not seven and one
    assert balance([100, 2, 3, 9, 1, 1], 10, 6) == [[0], [1, 2], [3], [4, 5]]


class Watched:
    """Rows and tokens of every pass with a gradient."""

    def __init__(self, trainer: Any) -> None:
        self.seen: list[tuple[int, int]] = []
        self.honest, trainer.objective.loss_sum = trainer.objective.loss_sum, self

    def __call__(self, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.seen.append((len(batch["index"]), batch["input_ids"].numel()))
        return self.honest(batch)


def done(trainer: Any, folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[tuple[int, int]]]:
    """Log lines, what was trained, and the passes."""
    watched = Watched(trainer)
    trainer.train()
    lines = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(folder / "trainer_log.jsonl")]
    trained = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    return lines, trained, watched.seen


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_the_step_is_that_of_the_whole_batch(
    method: str, dtype: torch.dtype, trainer_of: Any, tokens: Any, tmp_path: Path
) -> None:
    """Losses, norms, counts and weights, with a row that is not trained and one that is over the limit."""
    found = {}
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "finetuning_type": method}
    options |= {"freeze_trainable_layers": 1} if method == "freeze" else {}
    for wish in (False, 64, 1):
        folder = tmp_path / str(wish)
        trainer = trainer_of(tokens(LENGTHS), dtype=dtype, tokens_per_pass=wish, output_dir=str(folder), **options)
        found[wish] = done(trainer, folder)
    lines, trained, whole = found[False]
    assert {rows for rows, _ in whole} == {4}
    assert any(size > 64 for _, size in whole)
    assert all(rows == 1 for rows, _ in found[1][2])
    assert all(size <= 64 or rows == 1 for rows, size in found[64][2])
    assert len(whole) < len(found[64][2]) < len(found[1][2])
    rel = 1e-5 if dtype == torch.float32 else 1e-10
    for wish in (64, 1):
        assert [line.keys() for line in found[wish][0]] == [line.keys() for line in lines]
        for line, expected in zip(found[wish][0], lines, strict=True):
            assert line == pytest.approx(expected, rel=max(rel, 1e-6))
        for name, expected in trained.items():
            # float32: Adam divides gradients near 0 by themselves, which puts weights 3.1e-5 apart where losses are
            # within 1e-5; float64 shows that it is rounding
            assert (found[wish][1][name] - expected).norm() <= min(10 * rel, 1e-4) * expected.norm(), name


def test_auto_is_2048_on_a_cpu(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    long = tokens([500, 400, 300, 200, 100, 50, 600, 30], untrained=())
    trainer = trainer_of(long, per_device_train_batch_size=8, max_steps=1, disable_shuffling=True, cutoff_len=600)
    assert trainer.plan.training.pass_tokens(trainer.plan.traits.pass_tokens) == 2048
    assert done(trainer, tmp_path / "out")[2] == [(3, 1200), (5, 980)]


def test_memory_that_runs_out_halves_the_passes(
    trainer_of: Any, tokens: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the batch, whose half may still be more than a pass."""
    trainer = trainer_of(tokens([20] * 8), per_device_train_batch_size=8, tokens_per_pass=80, max_steps=1)
    honest = trainer.objective.loss_sum

    def small(batch: Any) -> torch.Tensor:
        if len(batch["index"]) > 2:
            raise MemoryError
        return honest(batch)

    trainer.objective.loss_sum = small
    seen = done(trainer, tmp_path / "out")[2]
    assert "with 4 rows at a time: this step and all later ones use micro-batches of 2 rows" in capsys.readouterr().out
    assert (trainer.guard.max_rows, seen) == (2, [(4, 80), *[(2, 40)] * 4])


def test_padded_batches_stay_whole(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    trainer = trainer_of(tokens(LENGTHS), per_device_train_batch_size=4, tokens_per_pass=1)
    trainer.scorer.packed = False
    assert {rows for rows, _ in done(trainer, tmp_path / "out")[2]} == {4}


def test_noise_and_dropout_go_by_passes(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    options = {"neftune_noise_alpha": 5, "lora_dropout": 0.2, "per_device_train_batch_size": 4}
    lines, _, seen = done(trainer_of(tokens(LENGTHS), tokens_per_pass=20, **options), tmp_path / "out")
    assert len(seen) > 3
    assert all(line["loss"] > 0 for line in lines if "loss" in line)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(stops_after: Any, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """With dropout; and not with another limit, which would round otherwise."""
    options = {"tokens_per_pass": 24, "lora_dropout": 0.3, "max_steps": 5, "per_device_train_batch_size": 5}
    make = partial(trainer_of, tokens(LENGTHS), **options)
    ends = []
    for name, stops in (("whole", False), ("stopped", True), ("stopped", False)):
        trainer = make(output_dir=str(tmp_path / name))
        if stops:
            trainer.add_callback(stops_after(2))
        trainer.train()
        ends.append(torch.cat([t.detach().view(-1) for t in trainer.model.parameters() if t.requires_grad]))
        if stops:
            with pytest.raises(UsageError, match="tokens_per_pass"):
                trainer_of(
                    tokens(LENGTHS), **options | {"tokens_per_pass": 25}, output_dir=str(tmp_path / name)
                ).train()
    assert not torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("value", [0, -1, "many", True, 1.5])
def test_what_is_no_limit_is_refused(value: Any, plan_of: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(tokens_per_pass=value)
    found = [problem.message for problem in caught.value.problems]
    assert found == [f"tokens_per_pass: write auto, a number of tokens (1 or more), or false, found {value!r}"]
