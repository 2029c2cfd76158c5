"""Early stopping and the best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.errors import RunError, UsageError
from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing import directory

OPTIONS: dict[str, Any] = {
    "max_steps": 12,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "val_size": 2,
    "lr_scheduler_type": "constant",
}


@pytest.fixture
def scripted(trainer_of: Any, tokens: Any) -> Any:
    """``scripted(losses, **options)``: a trainer whose n-th evaluation has the n-th of these losses."""

    def make(losses: list[float], **options: Any) -> Any:
        trainer = trainer_of(tokens([9, 7, 8, 6]), tokens([7]), **(OPTIONS | options))

        def eval_loss(dataset: Any) -> float:
            loss = losses[trainer.state.global_step - 1]
            trainer.objective.log_metric("score", torch.tensor([-loss], dtype=torch.float64))
            return loss

        trainer.objective.eval_loss = eval_loss
        return trainer

    return make


LOSSES = [5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 3.1, 2.0, 1.0, 0.5, 0.4, 0.3]


@pytest.mark.slow
@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 6), (3, 7), (4, 12), (None, 12)])
def test_it_ends_after_so_many_evaluations_without_a_better_one(
    patience: int | None, last: int, scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = scripted(LOSSES, early_stopping_steps=patience, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == last
    said = capsys.readouterr().out
    best = min(range(1, last + 1), key=lambda step: LOSSES[step - 1])
    line = f"stopped early at step {last} of 12: no improvement since step {best}, whose value was {LOSSES[best - 1]:g}"
    assert (line in said) is (last < 12)


def test_a_larger_metric_may_be_the_better_one(scripted: Any) -> None:
    trainer = scripted(LOSSES, early_stopping_steps=1, metric_for_best_model="score")
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.state.best_metric == -4.0


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 5])
def test_a_resume_counts_on(step: int, scripted: Any, tmp_path: Path) -> None:
    """Stopped by hand in the middle of a patience of 3, it ends where it would have."""
    import shutil

    scripted(LOSSES, early_stopping_steps=3).train()
    for folder in directory.checkpoints(tmp_path / "out"):
        if int(folder.name.rpartition("-")[2]) > step:
            shutil.rmtree(folder)
    again = scripted(LOSSES, early_stopping_steps=3)
    again.train()
    assert again.state.global_step == 7
    evaluated = [
        line["current_steps"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl") if "eval_loss" in line
    ]
    assert evaluated == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_a_run_that_ended_early_has_nothing_left_to_do(
    scripted: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scripted(LOSSES, early_stopping_steps=2).train()
    capsys.readouterr()
    again = scripted(LOSSES, early_stopping_steps=2)
    output = again.train()
    assert again.state.global_step == 6
    assert "train_loss" not in output.metrics
    assert (
        f"{tmp_path / 'out' / 'checkpoint-6'} is the last step of this run: nothing left to train"
        in capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1, {"checkpoint-4", "checkpoint-7"}), (2, {"checkpoint-4", "checkpoint-7"}),
     (3, {"checkpoint-4", "checkpoint-6", "checkpoint-7"})],
)  # fmt: skip
def test_the_best_is_kept_and_is_what_is_left(limit: int, kept: set[str], scripted: Any, tmp_path: Path) -> None:
    trainer = scripted(LOSSES, load_best_model_at_end=True, max_steps=7, save_total_limit=limit)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    assert {path.name for path in directory.checkpoints(folder)} == kept
    best = folder / "checkpoint-4"
    assert (folder / "adapter_model.safetensors").read_bytes() == (best / "adapter_model.safetensors").read_bytes()
    state = json.loads((folder / "checkpoint-7" / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_metric"]) == (4, 3.0)


def test_save_strategy_best_saves_each_new_best(scripted: Any, tmp_path: Path) -> None:
    scripted(LOSSES, save_strategy="best", max_steps=7).train()
    names = [path.name for path in directory.checkpoints(tmp_path / "out")]
    assert names == ["checkpoint-1", "checkpoint-2", "checkpoint-4"]


def test_a_metric_that_is_not_there_is_named(scripted: Any) -> None:
    trainer = scripted(LOSSES, metric_for_best_model="accuracy", load_best_model_at_end=True)
    with pytest.raises(
        RunError, match=r"metric_for_best_model: the evaluation has no 'accuracy'; it has loss, .*score"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping_steps": 2}, "early_stopping_steps needs evaluations during training, and there are none"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations"),
        ({"save_strategy": "best"}, "save_strategy needs evaluations"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "steps", "val_size": 2},
            "eval_strategy is epoch, save_strategy is steps; write save_strategy: epoch, or best",
        ),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "val_size": 2,
             "eval_steps": 3, "save_steps": 10},
            "save_steps 10 is not a multiple of eval_steps 3",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_said_before(options: dict[str, Any], message: str, plan_of: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(**options)
    assert message in str(caught.value)
