"""Stages of answers, side by side: references, divergences and what is noted are those of one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.engine.crew import in_crew
from ftcore.engine.reports import read_log

CLOCK = ("throughput", "elapsed_time", "remaining_time")


def measured(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "runtime" not in name and "second" not in name}


@pytest.mark.parametrize("stage", ["dpo", "rm", "kto"])
def test_the_same_as_one_at_a_time(
    stage: str, two_threads: None, trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: log lines, weights, and an evaluation."""
    found = []
    for wish in (False, "auto"):
        folder = tmp_path / str(wish)
        monkeypatch.setenv("FT_CACHE", str(folder / "cache"))
        values = {"max_steps": 2, "per_device_train_batch_size": 12, "output_dir": str(folder), "tokens_per_pass": wish}
        trainer = trainer_of(stage, 12, dtype=torch.float64, finetuning_type="lora", **values)
        trainer.adds_up = trainer.crew is not None  # of a tiny model adapters are a large part
        honest, members = trainer.loss_sum, []

        def watched(batch: Any, honest: Any = honest, members: list[bool] = members) -> torch.Tensor:
            members.append(in_crew())
            return honest(batch)

        trainer.loss_sum = watched
        trainer.train()
        lines = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(folder / "trainer_log.jsonl")]
        trained = {name: t.detach().clone() for name, t in trainer.model.named_parameters() if t.requires_grad}
        found.append((lines, trained, measured(trainer.evaluate(trainer.train_dataset)), members))
    (lines, trained, evaluated, _), (halves_lines, halves, halves_evaluated, members) = found
    assert len(members) > 4
    assert all(members)
    for line in (lines[0], halves_lines[0]):  # gains are 0 before the first step: which of two is greater is rounding
        line.pop("rewards/accuracies", None)
    assert halves_lines == [pytest.approx(line, rel=1e-8, abs=1e-12) for line in lines]
    assert halves_evaluated == pytest.approx(evaluated, rel=1e-8, abs=1e-12)
    for name, expected in trained.items():
        assert (halves[name] - expected).norm() <= 1e-8 * expected.norm(), name
