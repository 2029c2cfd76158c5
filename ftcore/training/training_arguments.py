"""The plan as transformers' TrainingArguments: renamed options, and fields that ft sets itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainingArguments

from ftcore.api.plan import Plan
from ftcore.config.hf_training_arguments import training_fields

_SAME_NAME = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "ddp_timeout",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_only_model",
    "eval_strategy",
    "eval_steps",
    "dataloader_num_workers",
    "dataloader_drop_last",
)


_OWN = ("accelerator_config", "bf16_full_eval", "disable_tqdm", "fp16_full_eval", "use_cpu")
"""Fields that ft reads itself, because transformers would act on them differently."""


def training_arguments(plan: Plan) -> TrainingArguments:
    """The plan as transformers' Trainer reads it."""
    training = plan.training
    fields: dict[str, Any] = {name: getattr(training, name) for name in _SAME_NAME}
    fields |= {
        "output_dir": str(plan.output_dir),
        "warmup_steps": _warmup(training.warmup_steps, training.warmup_ratio),
        "report_to": list(training.report_to),
        "use_cpu": plan.device == "cpu",
        "include_num_input_tokens_seen": "all",
    }
    if training.save_strategy == "best" or training.early_stopping_steps:
        fields["metric_for_best_model"] = "loss"
    fields |= {**_optimizer(plan), **passed_on(plan)}
    fields |= _precision(plan) | {
        "disable_tqdm": True,  # ft has its own progress bar (`ftcore.training.callbacks.progress`)
        "logging_nan_inf_filter": False,  # it would hide a non-finite loss, and step on it
        "remove_unused_columns": False,
        # `ftcore.training.checkpointing.directory` prunes: transformers may delete the last whole checkpoint
        "save_total_limit": None,
        "restore_callback_states_from_checkpoint": True,
    }
    return TrainingArguments(**fields)


def passed_on(plan: Plan) -> dict[str, Any]:
    """Fields that transformers reads. ``ddp_backend`` only with several processes: it makes accelerate wait for
    others."""
    own = _OWN if int(os.environ.get("WORLD_SIZE") or 1) > 1 else (*_OWN, "ddp_backend")
    return {name: value for name, value in plan.transformers.items() if name not in own}


@contextmanager
def tensorboard_folder(plan: Plan) -> Iterator[None]:
    """Sets the variable from which the tensorboard callback of a new trainer reads its folder."""
    name, folder = "TENSORBOARD_LOGGING_DIR", plan.training.logging_dir
    before = os.environ.get(name)
    if folder is not None:
        os.environ[name] = folder
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop(name)
            os.environ |= {} if before is None else {name: before}


def _optimizer(plan: Plan) -> dict[str, Any]:
    """The optimizer's name in transformers, and its options that are fields of TrainingArguments."""
    known, component = training_fields(), plan.optimizer.component
    names = [name for name in (component.name, *component.aliases) if name in known["optim"].choices]
    values = {name: value for name, value in plan.optimizer.options.model_dump().items() if name in known}
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return fields | ({"optim": names[0]} if names else {})


def _warmup(steps: float, ratio: float) -> float:
    """``warmup_steps`` of transformers 5: a number of steps from 1 on, below 1 a share of all steps, rounded up."""
    return steps if steps > 0 else min(ratio, 1 - 1e-9)


def _precision(plan: Plan) -> dict[str, bool]:
    """Autocast where the compute dtype is half precision and the trained dtype is not."""
    mixed = plan.precision.compute != plan.precision.trained
    return {
        "bf16": mixed and plan.precision.compute == "bfloat16",
        "fp16": mixed and plan.precision.compute == "float16",
    }
