"""Each stage stopped and gone on with: the same weights, optimizer and log lines, to the bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from ftcore.engine import checkpoints
from ftcore.engine.reports import read_log
from ftcore.engine.signals import InterruptedRunError

OPTIONS = {
    "max_steps": 6,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "disable_shuffling": False,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "val_size": 4,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
}


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(folder: Path) -> dict[str, Any]:
    last = checkpoints.checkpoints(folder)[-1]
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    clock = {"throughput", "elapsed_time", "remaining_time"}
    lines = [{key: line[key] for key in line if key not in clock} for line in read_log(folder / "trainer_log.jsonl")]
    return files | {"lines": lines}


@pytest.mark.parametrize("method", ["full", "lora", "freeze", "qlora"])
@pytest.mark.parametrize("stage", ["dpo", "rm", "kto", "pt"])
def test_stopped_it_goes_on_to_the_same_bytes(stage: str, method: str, trainer_of: Any, tmp_path: Path) -> None:
    """In the second epoch, with a log line's sums half full."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    options = OPTIONS | {"finetuning_type": method}
    if method == "lora":
        options["lora_dropout"] = 0.3
    if stage == "pt":
        options["cutoff_len"] = 48
    rows = {"pt": 24}.get(stage, 9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer_of(stage, rows, output_dir=str(whole), **options).train()
    for step in (2, 5):
        trainer = trainer_of(stage, rows, output_dir=str(parts), **options)
        trainer.add_callback(Stop(step))
        with pytest.raises(InterruptedRunError):
            trainer.train()
    trainer_of(stage, rows, output_dir=str(parts), **options).train()
    assert outcome(parts) == outcome(whole)
