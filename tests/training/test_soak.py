"""Long runs, and runs that must be the same twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing import directory


class Usage(TrainerCallback):
    """Resident memory in bytes and open files, every 20 steps."""

    def __init__(self) -> None:
        self.memory: list[int] = []
        self.files: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 20 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
            self.files.append(len(list(Path("/proc/self/fd").iterdir())))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_thousand_steps_and_five_hundred_checkpoints(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """After the first 500 steps memory grows by less than 1 MB in 100 steps, and no file is left open.

    In a process of its own: the heap of one that has run thousands of tests moves by itself.
    """
    if "FT_SOAK" not in os.environ:
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | {"FT_SOAK": "1"}
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "two_thousand"]
        done = subprocess.run(words, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        return
    options = {"max_steps": 2000, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    options |= {"logging_steps": 10, "per_device_train_batch_size": 2, "lora_rank": 2, "lora_target": "q_proj"}
    trainer = trainer_of(tokens([5, 9, 3, 7, 4, 6, 8, 5]), **options)
    usage = Usage()
    trainer.add_callback(usage)
    trainer.train()
    late = np.array(usage.memory[25:])
    slope = np.polyfit(np.arange(len(late)) * 20, late, 1)[0] * 100
    assert slope < 1e6
    assert len(set(usage.files[1:])) == 1
    assert [path.name for path in directory.checkpoints(tmp_path / "out")] == ["checkpoint-1996", "checkpoint-2000"]


@pytest.mark.slow
def test_two_runs_are_the_same_with_workers_or_without(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    """Dropout, shuffling, accumulation: weights bit for bit, and every log line but for its times."""
    options = {"max_steps": 6, "lora_dropout": 0.2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    found = []
    for name, workers in (("one", 0), ("two", 0), ("three", 2)):
        folder = tmp_path / name
        trainer = trainer_of(
            tokens([5, 9, 3, 7, 4, 6, 8]), **options, output_dir=str(folder), dataloader_num_workers=workers
        )
        trainer.train()
        trainer.save_model()
        clock = {"throughput", "elapsed_time", "remaining_time"}
        lines = [
            {key: line[key] for key in line if key not in clock} for line in read_log(folder / "trainer_log.jsonl")
        ]
        found.append(((folder / "adapter_model.safetensors").read_bytes(), lines))
    assert found[0] == found[1]
    assert found[0] == found[2]
