"""Each stage's batches in passes of so many tokens: the same steps, metrics and resumes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from ftcore.training.callbacks.progress import read_log

CLOCK = ("throughput", "elapsed_time", "remaining_time")


def done(trainer: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor], list[tuple[int, int]]]:
    """Log lines, what was trained, and rows and tokens of each pass."""
    seen, honest = [], trainer.objective.loss_sum

    def watched(batch: Any) -> torch.Tensor:
        seen.append((len(batch["index"]), batch["input_ids"].numel()))
        return honest(batch)

    trainer.objective.loss_sum = watched
    trainer.train()
    lines = read_log(trainer.plan.output_dir / "trainer_log.jsonl")
    trained = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines], trained, seen


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pt", "dpo", "rm", "kto", "ppo"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_steps_are_those_of_whole_batches(
    stage: str, method: str, trainer_of: Any, ppo: Any, tmp_path: Any
) -> None:
    """In float64, where only the order of additions differs: log lines and weights."""
    found = {}
    make = ppo if stage == "ppo" else partial(trainer_of, stage)
    count = {"pt": 24}.get(stage, 8)
    for wish in (False, 64, 1):
        options = {"finetuning_type": method, "max_steps": 3, "tokens_per_pass": wish, "dtype": torch.float64}
        options |= {"cutoff_len": 48} if stage == "pt" else {}
        found[wish] = done(make(count, **options, output_dir=str(tmp_path / str(wish))))
    lines, trained, whole = found[False]
    assert len(whole) == 3 < len(found[64][2]) <= len(found[1][2])
    alone = {size for _, size in found[1][2]}
    assert all(size <= 64 or size in alone for _, size in found[64][2])
    assert len(found[1][2]) == (9 if stage == "pt" else 12)  # packs: 4, 4 and 1
    for wish in (64, 1):
        for line, expected in zip(found[wish][0], lines, strict=True):
            assert line == pytest.approx(expected, rel=1e-6)
        for name, expected in trained.items():
            assert (found[wish][1][name] - expected).abs().max() <= 1e-6 * expected.abs().max(), name


def test_pairs_that_are_compared_stay_together(trainer_of: Any) -> None:
    assert {rows for rows, _ in done(trainer_of("dpo", 8, pref_loss="aot", tokens_per_pass=1))[2]} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "kto", "ppo"])
def test_stopped_it_goes_on_to_the_same_bytes(stage: str, trainer_of: Any, ppo: Any, whole_and_parts: Any) -> None:
    make = ppo if stage == "ppo" else partial(trainer_of, stage)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "tokens_per_pass": 40, "lora_dropout": 0.3}
    whole, parts = whole_and_parts(partial(make, 9, **options), (2, 3))
    assert parts == whole
