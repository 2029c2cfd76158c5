"""kill -9 at random moments, and on to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftcore.engine.reports import read_log

KILLS = int(os.environ.get("FT_KILLS", "12"))
"""The nightly run sets more."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(method: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Every kill leaves a folder that the same command goes on from, without help; nothing half written is left."""
    options = {
        "model_name_or_path": str(tiny_model_dir),
        "finetuning_type": method,
        "lora_dropout": 0.2,
        "max_steps": 24,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 1,
        "save_total_limit": 2,
        "logging_steps": 5,
        "learning_rate": 1e-3,
    }
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"options": options, "folder": str(tmp_path), "kills": KILLS, "seed": 1}))
    script = Path(__file__).with_name("forked_runs.py")
    ran = subprocess.run([sys.executable, str(script), str(spec)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["with_checkpoint"] > 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    names = ["adapter_config.json", "adapter_model.safetensors"] if method == "lora" else ["model.safetensors"]
    last = [f"checkpoint-24/{name}" for name in ("optimizer.safetensors", "random-0.safetensors", "scheduler.json")]
    for name in [*names, *last]:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert list(killed.glob(".tmp-*")) == []
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-23", "checkpoint-24"]
    losses = [[line["loss"] for line in read_log(folder / "trainer_log.jsonl")] for folder in (whole, killed)]
    assert losses[0] == losses[1]
