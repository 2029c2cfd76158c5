"""Every schedule of transformers, step by step, with its arguments and warm-up."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SchedulerType, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

from ftcore.config.validation.lr_schedulers import SCHEDULES
from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log

KWARGS: dict[str, dict[str, Any]] = {
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"lr_end": 1e-4, "power": 2.0},
    "inverse_sqrt": {"timescale": 3},
    "cosine_with_min_lr": {"min_lr": 1e-3},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 3, "decay_type": "linear"},
    "reduce_lr_on_plateau": {"factor": 0.5, "patience": 0, "threshold": 10.0, "threshold_mode": "abs"},
    "greedy": {"factor": 0.5, "patience": 0, "min_lr": 1e-5, "threshold": 10.0},
}
STEPS = 8


def expected(name: str, warmup: int) -> list[float]:
    """The rates of each step by transformers' own scheduler; metrics are the same each time: no progress."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e-2)
    scheduler = get_scheduler(name, optimizer, warmup, STEPS, scheduler_specific_kwargs=KWARGS.get(name))
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([5.0] if SCHEDULES[name].evaluates else []))
    return rates


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 3}, {"warmup_ratio": 0.26}])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_rates_are_those_of_transformers(
    name: str, warmup: dict[str, Any], trainer_of: Any, tokens: Any, tmp_path: Path
) -> None:
    """A share of 0.26 of 8 steps is 2.08, rounded up to 3."""
    options: dict[str, Any] = {"lr_scheduler_type": name, "max_steps": STEPS} | warmup
    if name in KWARGS:
        options["lr_scheduler_kwargs"] = KWARGS[name]
    if SCHEDULES[name].evaluates:
        options |= {"eval_strategy": "steps", "eval_steps": 1, "val_size": 2}
    trainer_of(tokens([9] * 12), tokens([7]), **options).train()
    rates = [line["learning_rate"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl") if "loss" in line]
    assert rates == [pytest.approx(rate, rel=1e-9) for rate in expected(name, 3 if warmup else 0)]
    if name != "constant":
        assert len(set(rates)) > 1 or (name == "constant_with_warmup" and not warmup)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy", "warmup_stable_decay"])
def test_a_resume_goes_on_in_the_schedule(name: str, trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    options = {"lr_scheduler_type": name, "lr_scheduler_kwargs": KWARGS[name], "max_steps": STEPS, "val_size": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 4}
    found = []
    for folder in ("whole", "resumed"):
        sets = (tokens([9] * 12), tokens([7]))
        trainer_of(*sets, output_dir=str(tmp_path / folder), **options).train()
        if folder == "resumed":
            import shutil

            shutil.rmtree(tmp_path / folder / "checkpoint-8")
            trainer_of(*sets, output_dir=str(tmp_path / folder), **options).train()
        lines = read_log(tmp_path / folder / "trainer_log.jsonl")
        found.append([(line["learning_rate"], line["loss"]) for line in lines if "loss" in line])
    assert found[0] == found[1]


def test_the_table_is_that_of_transformers() -> None:
    """Names, and what each takes beside what the trainer gives it."""
    assert {*SCHEDULES} == {member.value for member in SchedulerType}
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "self", "kwargs"}
    behind = {"reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau.__init__, "greedy": GreedyLR.__init__}
    for member, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        takes = {*inspect.signature(behind.get(member.value, function)).parameters} - given
        assert {*SCHEDULES[member.value].takes} == takes, member


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "there is no lr_scheduler_type 'cosin'; write one of linear, cosine, "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs min_lr or min_lr_rate in lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "needs num_decay_steps in lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "schedule linear does not take power; it takes no arguments"),
        ({"lr_scheduler_kwargs": "power"}, "lr_scheduler_kwargs is not a mapping of names to values"),
        (
            {"lr_scheduler_type": "greedy", "do_train": True, "dataset": "x.json"},
            "schedule greedy depends on an evaluation metric, and there are no evaluations during training; "
            "write eval_strategy",
        ),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "do_train": True, "dataset": "x.json"},
            "schedule reduce_lr_on_plateau depends on an evaluation metric",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(options: Any, message: str, plan_of: Any) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(**options)
    assert message in str(caught.value)
