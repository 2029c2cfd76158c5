"""What is measured: one entry for each row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SHARED: Mapping[str, Any] = {
    "do_train": True,
    "dataset": "rows",
    "cutoff_len": 1024,
    "template": "phi4",  # the same text and the same labels in both; others train a line break more in LLaMA-Factory
    "disable_shuffling": True,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "overwrite_output_dir": True,
    "bf16": False,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        work: what ``WORK=`` selects.
        against: the peer and its setting, for the table.
        data: file of the data folder; ``batch`` times the number of steps of its rows are drawn.
        batch: rows in an optimizer step.
        target: the ratio of CPU time that is aimed at.
        options: of both sides.
        peer: of the peer alone.
    """

    work: str
    against: str
    data: str
    batch: int
    target: float
    options: Mapping[str, Any]
    peer: Mapping[str, Any]


LORA = {"stage": "sft", "finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_target": "all"}
SFT = Row(
    work="sft",
    against="LLaMA-Factory 0.9.5, gradient checkpointing on (its default)",
    data="alpaca_en_demo.json",
    batch=8,
    target=4.0,
    options=LORA,
    peer={},
)
ROWS = (
    SFT,
    replace(
        SFT,
        against="LLaMA-Factory 0.9.5, gradient checkpointing off",
        target=2.8,
        peer={"disable_gradient_checkpointing": True},
    ),
)

MISSING = (
    "sft lora against TRL (defaults, tuned)",
    "sft full against LLaMA-Factory and TRL",
    "dpo, rm, kto and pt lora against LLaMA-Factory and TRL",
    "freeze and qlora against LLaMA-Factory",
    "preprocessing, and the start up to the first step",
    "utilisation",
)
