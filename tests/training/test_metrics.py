"""What a run reports at its end, right after a resume as well."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing import directory
from ftcore.training.plots import curves, plot_losses

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 4, 16, 5, 28]
OPTIONS: dict[str, Any] = {
    "num_train_epochs": 2,
    "max_steps": -1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 2,
}
STEPS = 6
"""Of 11 rows: two of four rows and a short one of three in each epoch."""


@pytest.fixture
def trained(trainer_of: Any, tokens: Any, tmp_path: Path) -> Any:
    """``trained(name)``: a trainer that has trained, and its metrics."""

    def run(name: str, **options: Any) -> tuple[Any, dict[str, float]]:
        trainer = trainer_of(tokens(LENGTHS, untrained=()), **(OPTIONS | options), output_dir=str(tmp_path / name))
        return trainer, trainer.train().metrics

    return run


def back_to(folder: Path, step: int) -> None:
    for path in directory.checkpoints(folder):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)


def test_the_numbers_of_a_whole_run(trained: Any, tmp_path: Path) -> None:
    """6 FLOPs per token and parameter but those of embeddings, as if all were trained: two forward, four backward."""
    trainer, metrics = trained("whole", logging_steps=1)
    losses = [line["loss"] for line in read_log(tmp_path / "whole" / "trainer_log.jsonl")]
    assert metrics["train_loss"] == pytest.approx(sum(losses) / STEPS, rel=1e-6)
    seen = 2 * sum(LENGTHS)
    assert trainer.state.num_input_tokens_seen == seen
    model = trainer.model
    dense = sum(tensor.numel() for name, tensor in model.named_parameters() if "embed_tokens" not in name)
    assert metrics["total_flos"] == 6 * seen * dense
    runtime = metrics["train_runtime"]
    assert metrics["train_samples_per_second"] * runtime == pytest.approx(2 * len(LENGTHS), rel=0.01)
    assert metrics["train_steps_per_second"] * runtime == pytest.approx(STEPS, rel=0.05)
    last = read_log(tmp_path / "whole" / "trainer_log.jsonl")[-1]
    assert last["num_input_tokens_seen"] == seen
    assert 0 < last["throughput"] * runtime <= seen * 1.3
    assert last["remaining_time"] == "0:00:00"


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_after_a_resume_they_are_of_this_runs_steps(step: int, trained: Any, tmp_path: Path) -> None:
    """But for what a model has seen and cost in all; a resume in the middle of a log interval counts no step twice."""
    _, whole = trained("whole", logging_steps=1)
    losses = [line["loss"] for line in read_log(tmp_path / "whole" / "trainer_log.jsonl")]
    trained("resumed")
    back_to(tmp_path / "resumed", step)
    trainer, metrics = trained("resumed")
    left = losses[step:]
    assert metrics["train_loss"] == pytest.approx(sum(left) / len(left), rel=1e-5)
    assert metrics["total_flos"] == whole["total_flos"]
    assert trainer.state.num_input_tokens_seen == 2 * sum(LENGTHS)
    rows = 2 * len(LENGTHS) - sum([4, 4, 3, 4, 4, 3][:step])
    assert metrics["train_samples_per_second"] * metrics["train_runtime"] == pytest.approx(rows, rel=0.01)
    logged = [line["loss"] for line in read_log(tmp_path / "resumed" / "trainer_log.jsonl")]
    pairs = [sum(losses[at : at + 2]) / 2 for at in range(0, STEPS, 2)]
    assert logged == [pytest.approx(loss, rel=1e-5) for loss in pairs]


@pytest.mark.slow
def test_a_resume_that_finds_nothing_to_do_says_so(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("done")
    capsys.readouterr()
    _, metrics = trained("done")
    assert "train_loss" not in metrics
    assert metrics["train_samples_per_second"] == 0
    assert "checkpoint-6 is the last step of this run: nothing left to train" in capsys.readouterr().out


@pytest.mark.slow
def test_a_skip_before_a_resume_is_in_no_mean_after_it(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """Steps 3 and 4 share a log line; 3 is skipped, the run goes on from its checkpoint, and the line is step 4's."""

    logged = {}
    for name in ("whole", "resumed"):
        for again in (False, True)[: 1 + (name == "resumed")]:
            options = OPTIONS | {"on_nonfinite": "skip", "output_dir": str(tmp_path / name)}
            trainer = trainer_of(tokens(LENGTHS, untrained=()), **options)
            honest = trainer.objective.loss_sum

            def broken(batch: Any, trainer: Any = trainer, honest: Any = honest) -> Any:
                return honest(batch) * (math.nan if trainer.state.global_step == 2 else 1)

            trainer.objective.loss_sum = broken
            trainer.train()
            if name == "resumed" and not again:
                back_to(tmp_path / name, 3)
        logged[name] = [line["loss"] for line in read_log(tmp_path / name / "trainer_log.jsonl")]
        assert trainer.guard.skipped == 1
    assert logged["whole"] == logged["resumed"]


def test_metrics_are_weighted_means(trainer_of: Any, tokens: Any) -> None:
    trainer = trainer_of(tokens([3, 4]))
    trainer.objective.log_metric("length", torch.tensor([2.0, 4.0]))
    trainer.objective.log_metric("length", torch.tensor([9.0]), torch.tensor([2.0]))
    assert trainer.metrics.training.means(trainer.strategy) == {"length": 6.0}


def test_each_loss_reward_and_accuracy_has_its_curve(tmp_path: Path) -> None:
    """By name, so that a stage's own metrics need no word here; rates, norms and clocks are not drawn."""
    names = ("loss", "rewards/accuracies", "rewards/margins", "learning_rate", "grad_norm", "logps/chosen", "accuracy")
    lines = [{"current_steps": step, "elapsed_time": "0:00:01"} | dict.fromkeys(names, 1 / step) for step in (1, 2, 3)]
    lines.append({"current_steps": 3, "eval_loss": 0.5, "eval_rewards/accuracies": 0.25})

    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = curves(lines)
    assert found["eval_rewards/accuracies"] == [(3, 0.25)]
    assert [name for name in found if name not in names] == ["eval_loss", "eval_rewards/accuracies"]
    assert [file.name for file in plot_losses(tmp_path)] == [
        "training_loss.png",
        "training_rewards_accuracies.png",
        "training_rewards_margins.png",
        "training_accuracy.png",
        "training_eval_loss.png",
        "training_eval_rewards_accuracies.png",
    ]
