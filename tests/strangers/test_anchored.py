"""A stage whose loss compares with a reference: it gets all of the engine without knowing of it."""

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

Train = Callable[..., Path]


@pytest.fixture
def train(stranger: Callable[[str], Plugins], values: dict[str, Any], tmp_path: Path) -> Train:
    """``train("name", **options)``: a run with the stage; returns its folder."""

    def start(name: str, **options: Any) -> Path:
        own = {"stage": "anchored", "save_strategy": "no", "output_dir": str(tmp_path / name), "max_steps": 4}
        plan = make_plan(None, plugins=stranger("anchored"), values=values | own | options)
        assert run(plan) == 0
        return tmp_path / name

    return start


def numbers(folder: Path) -> list[dict[str, float]]:
    kept = ("loss", "grad_norm", "moved", "eval_loss", "eval_moved")
    return [{k: line[k] for k in kept if k in line} for line in read_log(folder / "trainer_log.jsonl")]


def test_it_has_50_lines() -> None:
    assert code_lines("anchored") <= 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "tokens_per_pass": 60},
        {"share_prompt": True},
        {"tokens_per_pass": 40},
        {"gradient_checkpointing": True},
        {"backend": "reference"},
    ],
    ids=["accumulated", "one row each", "shared prefixes", "micro-batches", "recomputed", "plain torch"],
)
def test_how_a_global_batch_is_computed_does_not_change_it(shape: dict[str, Any], train: Train, chats: Path) -> None:
    options = {"eval_dataset": str(chats), "eval_strategy": "steps", "eval_steps": 2, "bf16": False}
    expected, found = numbers(train("whole", **options)), numbers(train("other", **options | shape))
    assert expected[0]["moved"] == pytest.approx(0, abs=1e-9)
    assert [line["eval_moved"] for line in expected if "eval_moved" in line][-1] > 0
    assert found == [pytest.approx(line, rel=1e-3, abs=1e-6) for line in expected]


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bytes(train: Train, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "lora_dropout": 0.1, "gradient_accumulation_steps": 2}
    whole = train("whole", **options)
    shutil.copytree(whole, tmp_path / "again")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "again" / f"checkpoint-{step}")
    expected, found = (load_file(f / "adapter_model.safetensors") for f in (whole, train("again", **options)))
    assert all((found[name] == expected[name]).all() for name in expected)
    assert numbers(whole) == numbers(tmp_path / "again")
