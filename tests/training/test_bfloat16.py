"""Runs that compute in bfloat16 while what is trained stays in float32, as on a GPU: slow here, but the same code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.config.planner import make_plan
from ftcore.resources import hardware
from ftcore.runner.run import run
from ftcore.training.callbacks.progress import read_log

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"freeze_trainable_layers": 1},
    # the first of the weights is float32, those behind it are not
    "embeddings": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "embed_tokens"},
    "lora": {},
    "qlora": {"lora_target": "q_proj"},
}


@pytest.fixture(autouse=True)
def _with_bf16(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FT_CPU_BF16", "1")
    hardware.detect.cache_clear()
    yield
    hardware.detect.cache_clear()


def losses(folder: Path, **values: Any) -> list[float]:
    """The loss of each step, then that of the evaluation."""
    plan = make_plan(None, values=values | {"output_dir": str(folder)})
    assert run(plan) == 0
    lines = read_log(folder / "trainer_log.jsonl")
    return [line[name] for name in ("loss", "eval_loss") for line in lines if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", ["sft", "dpo", "rm"])
def test_losses_are_near_those_of_float32(
    method: str,
    stage: str,
    tiny_model_dir: Path,
    rows_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the fast way too: none of them falls back to the model's own forward."""
    values: dict[str, Any] = {"finetuning_type": method, "stage": stage, "do_train": True} | METHODS[method]
    values |= {"model_name_or_path": str(tiny_model_dir), "template": "chatml", "max_steps": 3, "logging_steps": 1}
    values |= {"dataset": str(rows_file if stage == "sft" else pairs_file(tmp_path)), "learning_rate": 1e-3}
    values |= {"save_strategy": "no", "val_size": 1, "eval_strategy": "epoch", "plot_loss": False}
    values |= {"seed": 3, "per_device_train_batch_size": 2}
    mixed = losses(tmp_path / "mixed", **values)
    exact = losses(tmp_path / "exact", **values, bf16=False)
    assert len(mixed) == len(exact) >= 4
    assert all(math.isfinite(loss) for loss in mixed)
    assert mixed == pytest.approx(exact, rel=0.05, abs=0.02)
    assert mixed != exact
    assert [line for line in caplog.messages if "its own" in line] == []


def pairs_file(folder: Path) -> Path:
    """Three rows with a chosen and a rejected answer."""
    import json

    rows = [{"instruction": f"question {n}", "chosen": f"answer {n}", "rejected": f"no {n}"} for n in range(3)]
    (folder / "pairs.json").write_text(json.dumps(rows))
    return folder / "pairs.json"


def test_what_is_trained_is_float32(tiny_model_dir: Path, rows_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    values = {"model_name_or_path": str(tiny_model_dir), "template": "chatml", "dataset": str(rows_file)}
    losses(tmp_path / "out", **values, do_train=True, max_steps=1)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
