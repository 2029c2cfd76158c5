"""Stages of answers, side by side: references, divergences and what is noted are those of one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ft_plugins.backends.cpu import split_forward
from ft_plugins.backends.cpu.kv_exchange import split_row
from ft_plugins.backends.cpu.split_forward import SequenceSplit
from ft_plugins.backends.cpu.thread_pool import ThreadPool, in_pool
from ft_plugins.stages.ppo.rollout import collate_responses
from ftcore.training.callbacks.progress import read_log
from ftcore.training.step import micro_batching

CLOCK = ("throughput", "elapsed_time", "remaining_time")


def measured(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "runtime" not in name and "second" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["whole", "cut"])
@pytest.mark.parametrize("stage", ["dpo", "rm", "kto"])
def test_the_same_as_one_at_a_time(
    stage: str, rows: str, two_threads: None, trainer_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: log lines, weights, and an evaluation; of passes of whole rows, and of one that is cut."""
    cuts: list[Any] = []
    monkeypatch.setattr(split_forward, "split_row", lambda *given: cuts.append(given) or split_row(*given))
    if rows == "cut":
        monkeypatch.setattr(micro_batching, "is_balanced", lambda *_: False)
    found = []
    for wish in (False, "auto"):
        folder = tmp_path / str(wish)
        monkeypatch.setenv("FT_CACHE", str(folder / "cache"))
        values = {"max_steps": 2, "per_device_train_batch_size": 12, "output_dir": str(folder), "tokens_per_pass": wish}
        trainer = trainer_of(stage, 12, dtype=torch.float64, finetuning_type="lora", **values)
        if trainer.executor.workers == 2:  # of a tiny model adapters are a large part
            trainer.executor.concurrent_training = trainer.scorer.sequence_split.can_run_concurrent = True
        honest, members = trainer.objective.loss_sum, []

        def watched(batch: Any, honest: Any = honest, members: list[bool] = members) -> torch.Tensor:
            members.append(in_pool() or bool(cuts))
            return honest(batch)

        trainer.objective.loss_sum = watched
        trainer.train()
        lines = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(folder / "trainer_log.jsonl")]
        trained = {name: t.detach().clone() for name, t in trainer.model.named_parameters() if t.requires_grad}
        found.append((lines, trained, measured(trainer.evaluate(trainer.train_dataset)), members))
    (lines, trained, evaluated, _), (halves_lines, halves, halves_evaluated, members) = found
    assert len(members) >= 2
    assert all(members[-2:] if cuts else members)
    assert bool(cuts) is (rows == "cut")
    for line in (lines[0], halves_lines[0]):  # gains are 0 before the first step: which of two is greater is rounding
        line.pop("rewards/accuracies", None)
    assert halves_lines == [pytest.approx(line, rel=1e-8, abs=1e-12) for line in lines]
    assert halves_evaluated == pytest.approx(evaluated, rel=1e-8, abs=1e-12)
    for name, expected in trained.items():
        assert (halves[name] - expected).norm() <= 1e-8 * expected.norm(), name


@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_ppo_is_cut_with_its_values(backbone: str, ppo: Any, moved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_forward, "MIN_TOKENS", 1)
    trainer = ppo(finetuning_type="lora", ppo_value_backbone=backbone, dtype=torch.float64)
    trainer.rollouts.step(0)
    batch = trainer.on_device(collate_responses(trainer.rollouts.rows))
    moved(trainer.model)
    found = []
    for both in (None, SequenceSplit(ThreadPool(2), trainer.scorer, can_run_concurrent=True)):
        trainer.scorer.sequence_split = both
        assert both is None or both.accepts(batch)
        trainer.model.zero_grad()
        loss = trainer.objective.loss_sum(batch)
        loss.backward()
        gradients = {name: t.grad.clone() for name, t in trainer.model.named_parameters() if t.grad is not None}
        found.append((loss.item(), gradients))
    (loss, whole), (cut_loss, halves) = found
    assert cut_loss == pytest.approx(loss, rel=1e-7)
    assert any("value" in name for name in whole)
    assert halves.keys() == whole.keys()
    for name, expected in whole.items():
        # the value head is in float32
        assert (halves[name] - expected).norm() <= 1e-6 * expected.norm() + 1e-12, name
