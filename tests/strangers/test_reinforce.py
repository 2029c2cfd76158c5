"""A stage whose rows are made during training: rewards rise, and it resumes to the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ftcore.api.registry import Plugins
from ftcore.config.planner import make_plan
from ftcore.runner.run import run
from ftcore.training.callbacks.progress import read_log

from .conftest import code_lines

REWARD = """
def share_of_e(prompt, response):
    return response.count("e") / max(len(response), 1)
"""


@pytest.fixture
def train(
    stranger: Callable[[str], Plugins], values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """``train(folder, **options)``: a run with the stage; returns its folder."""
    (tmp_path / "rewards_in_python.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"stage": "reinforce", "reward": "rewards_in_python:share_of_e", "max_new_tokens": 12, "save_strategy": "no"}

    def start(folder: Path, **options: Any) -> Path:
        given = values | own | {"output_dir": str(folder), "finetuning_type": "full"} | options
        assert run(make_plan(None, plugins=stranger("reinforce"), values=given)) == 0
        return folder

    return start


def test_it_has_60_lines() -> None:
    assert code_lines("reinforce") <= 60


@pytest.mark.slow
def test_its_reward_rises(train: Callable[..., Path], tmp_path: Path, chats: Path) -> None:
    folder = train(tmp_path / "out", max_steps=40, eval_dataset=str(chats), eval_strategy="steps", eval_steps=40)
    lines = read_log(folder / "trainer_log.jsonl")
    rewards = [line["reward"] for line in lines if "reward" in line and "loss" in line]
    assert sum(rewards[-5:]) > 3 * sum(rewards[:5])
    assert next(line["eval_loss"] for line in lines if "eval_loss" in line) == pytest.approx(
        -next(line["eval_reward"] for line in lines if "eval_loss" in line), rel=1e-9
    )


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(train: Callable[..., Path], tmp_path: Path) -> None:
    """From within a rollout, and from its end; accumulated, and with the optimizer's state."""
    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}
    whole = train(tmp_path / "whole", **options)
    expected = load_file(whole / "model.safetensors")
    for step in (2, 3):
        shutil.copytree(whole, tmp_path / f"from-{step}")
        for later in range(step + 1, 7):
            shutil.rmtree(tmp_path / f"from-{step}" / f"checkpoint-{later}")
        found = load_file(train(tmp_path / f"from-{step}", **options) / "model.safetensors")
        assert all((found[name] == expected[name]).all() for name in expected)


@pytest.mark.slow
def test_micro_batches_do_not_change_it(train: Callable[..., Path], tmp_path: Path) -> None:
    found = [
        read_log(train(tmp_path / str(size), max_steps=2, **shape) / "trainer_log.jsonl")
        for size, shape in enumerate(
            (
                {"per_device_train_batch_size": 4},
                {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
                {"per_device_train_batch_size": 4, "tokens_per_pass": 40},
            )
        )
    ]
    first = [(line["loss"], line["grad_norm"]) for line in found[0]]
    for lines in found[1:]:
        assert [(line["loss"], line["grad_norm"]) for line in lines] == [pytest.approx(one, rel=1e-4) for one in first]
