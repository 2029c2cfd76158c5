"""The fields of ``transformers.Seq2SeqTrainingArguments``, known without importing transformers (which costs seconds).

``training_fields.json`` is written by ``docs/generate.py`` and a test keeps it equal to the installed transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CHECKS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
    "list": (list, tuple),
    "dict": dict,
}

NOT_OBEYED: Mapping[str, str] = {
    "activation_checkpointing": "use disable_gradient_checkpointing",
    "activation_checkpointing_kwargs": "use disable_gradient_checkpointing",
    "auto_find_batch_size": "ft plan estimates what fits",
    "batch_eval_metrics": "metrics are computed from sums over batches",
    "bf16_full_eval": "evaluation computes as training does",
    "dataloader_drop_last": "the last batch is always trained",
    "deepspeed": "it comes in a later version",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C always write a checkpoint",
    "eval_accumulation_steps": "no predictions are accumulated",
    "eval_do_concat_batches": "no predictions are accumulated",
    "eval_use_gather_object": "no predictions are accumulated",
    "fp16_full_eval": "evaluation computes as training does",
    "fsdp": "it comes in a later version",
    "fsdp_config": "it comes in a later version",
    "generation_config": "use the generation options",
    "generation_max_length": "use max_new_tokens",
    "generation_num_beams": "use num_beams",
    "gradient_checkpointing": "use disable_gradient_checkpointing",
    "gradient_checkpointing_kwargs": "use disable_gradient_checkpointing",
    "hub_always_push": "upload the finished folder",
    "hub_model_id": "upload the finished folder",
    "hub_private_repo": "upload the finished folder",
    "hub_revision": "upload the finished folder",
    "hub_strategy": "upload the finished folder",
    "hub_token": "upload the finished folder",
    "ignore_data_skip": "a resume goes on exactly where the run was",
    "include_for_metrics": "no predictions are accumulated",
    "label_names": "batches are made here",
    "label_smoothing_factor": "it comes in a later version",
    "length_column_name": "sequences are never padded",
    "liger_kernel_config": "logits are never made in full",
    "logging_nan_inf_filter": "a loss that is not a number always stops the run",
    "parallelism_config": "it comes in a later version",
    "prediction_loss_only": "no predictions are accumulated",
    "push_to_hub": "upload the finished folder",
    "remove_unused_columns": "batches are made here",
    "restore_callback_states_from_checkpoint": "a resume always restores them",
    "sortish_sampler": "sequences are never padded",
    "train_sampling_strategy": "sequences are never padded; disable_shuffling keeps their order",
    "use_liger_kernel": "logits are never made in full",
}
"""Fields that ft's own engine does in another way, or not yet: field -> what to do instead."""


@dataclass(frozen=True, slots=True)
class TrainingField:
    """One field: its name, accepted types, default and help."""

    name: str
    types: tuple[str, ...]
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> str:
        """What is wrong with a value; empty when nothing is."""
        if self.choices and value not in self.choices:
            return f"{value!r} is none of {', '.join(self.choices)}"
        if isinstance(value, bool) and "bool" not in self.types:
            return f"{value!r} is not {' or '.join(self.types)}"
        if any(isinstance(value, _CHECKS[name]) for name in self.types if name in _CHECKS):
            return ""
        return f"{value!r} is not {' or '.join(self.types)}"


@cache
def training_fields() -> dict[str, TrainingField]:
    """Name -> field."""
    rows = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {
        row["name"]: TrainingField(row["name"], tuple(row["types"]), row["default"], row["help"], tuple(row["choices"]))
        for row in rows
    }
