"""Each stage stopped and gone on with: the same weights, optimizer and log lines, to the bit."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "freeze", "qlora"])
@pytest.mark.parametrize("stage", ["dpo", "rm", "kto", "pt"])
def test_stopped_it_goes_on_to_the_same_bytes(stage: str, method: str, trainer_of: Any, whole_and_parts: Any) -> None:
    """In the second epoch, with a log line's sums half full."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    options = OPTIONS | {"finetuning_type": method}
    if method == "lora":
        options["lora_dropout"] = 0.3
    if stage == "pt":
        options["cutoff_len"] = 48
    rows = {"pt": 24}.get(stage, 9)
    whole, parts = whole_and_parts(partial(trainer_of, stage, rows, **options), (2, 5))
    assert parts == whole
